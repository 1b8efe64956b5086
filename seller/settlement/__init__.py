"""Turns what is owed into money on chain, exactly once, by our own gas key or through a facilitator."""
