"""The tables of the local index."""
