"""The tables of the buyer's pool."""
