"""Agreements: money, networks, x402 messages, digests, life cycles, errors and the chain."""
