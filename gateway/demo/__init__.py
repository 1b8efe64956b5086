"""The demo: one paid inference call on a local chain, told from end to end."""
