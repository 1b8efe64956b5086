"""Numbered SQL of the delegator's journal."""
