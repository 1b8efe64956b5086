"""Earn: price book, verification, reservations, settlement, ASGI middleware and proxy."""
