"""Earn: price book, verification, reservations, settlement, ASGI middleware and proxy."""

from seller.config import SellerConfig

__all__ = ["SellerConfig"]
