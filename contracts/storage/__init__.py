"""Opens the database a room keeps its books in, and brings its tables up to date."""

from contracts.storage.sqlite import Database, open_database

__all__ = ["Database", "open_database"]
