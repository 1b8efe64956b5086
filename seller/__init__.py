"""Earn: price book, verification, reservations, settlement, ASGI middleware and proxy."""

from seller.asgi import PaymentMiddleware
from seller.config import SellerConfig

__all__ = ["PaymentMiddleware", "SellerConfig"]
