"""Gives clients of a LiteLLM proxy the payment headers under their own names.

LiteLLM renames every header of the server behind it: `PAYMENT-RESPONSE` arrives as `llm_provider-payment-response`.
This callback puts back what a paying client reads: the receipt, the terms of a 402, when to retry, and Farebox's own
`x-farebox-*`. Chat, streamed chat, embeddings and responses carry them; on `/v1/completions` and `/v1/messages` LiteLLM
has dropped them before any callback, and `farebox receipts` tells.

`farebox litellm config` writes this file next to the proxy's YAML, which names it under `callbacks`. It runs inside
LiteLLM's environment, where Farebox is not installed, so it imports nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

_NAMES = frozenset({"payment-response", "x-payment-response", "payment-required", "retry-after"})
_NAME_PREFIX = "x-farebox-"
_RENAMED_PREFIX = "llm_provider-"

# The headers of a failed call, from the hook that sees the failure to the hook that writes headers.
_failed: ContextVar[Mapping[str, Any] | None] = ContextVar("farebox_failed_headers", default=None)


class _NoRetries(int):
    """A zero that counts as set: for embeddings LiteLLM reads a plain `max_retries: 0` as "not set" and repeats."""

    def __bool__(self) -> bool:
        return True


class FareboxHeaders(CustomLogger):  # type: ignore[misc]
    """Re-emits payment headers of `paid/` models. LiteLLM calls both hooks by keyword, so their names are fixed."""

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """Hold LiteLLM to an entry's `max_retries: 0` on every route."""
        return {**kwargs, "max_retries": _NoRetries(0)} if kwargs.get("max_retries") == 0 else None

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
    ) -> None:
        """Keep the headers of a failed call; the headers hook is not told why a call failed."""
        response = getattr(original_exception, "response", None)
        candidates = (
            getattr(response, "headers", None),
            getattr(original_exception, "litellm_response_headers", None),
            getattr(original_exception, "headers", None),
        )
        _failed.set(next((headers for headers in candidates if headers), None))

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,
        response: Any,
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, Any] | None = None,
    ) -> dict[str, str] | None:
        """Return the headers to add to the answer that LiteLLM is about to send."""
        if not str(data.get("model", "")).startswith("paid/"):
            return None
        headers = _failed.get() if response is None else _headers_of(response, data)
        return _payment_headers(headers or {}) or None


def _headers_of(response: Any, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the headers of the server's answer, however this route of LiteLLM keeps them."""
    hidden = getattr(response, "_hidden_params", None) or {}
    headers = hidden.get("additional_headers") or {}
    if any(str(name).lower().startswith(_RENAMED_PREFIX) for name in headers):
        return dict(headers)
    call = getattr(data.get("litellm_logging_obj"), "model_call_details", None) or {}
    return call.get("response_headers") or {}


def _payment_headers(headers: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items():
        bare = str(name).lower().removeprefix(_RENAMED_PREFIX)
        if bare in _NAMES or bare.startswith(_NAME_PREFIX):
            found[bare] = str(value)
    return found


handler = FareboxHeaders()
