"""The backlog's tables, numbered."""
