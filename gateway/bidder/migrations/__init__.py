"""Numbered SQL of the bidder's event log."""
