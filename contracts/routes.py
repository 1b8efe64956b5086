"""Routes of inference servers. Sources: OpenAI API, Anthropic API."""

from __future__ import annotations

__all__ = ["INFERENCE_PATHS"]

# OpenAI- and Anthropic-shaped routes, in the order in which a base URL is asked for its price.
INFERENCE_PATHS = ("/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/responses", "/v1/messages")
