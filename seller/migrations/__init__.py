"""The seller's tables, as numbered SQL files that run once each, in order."""
