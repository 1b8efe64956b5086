"""x402 extensions: what our 402 declares, and what a payment may say to it.

Clients echo what we declare and add their own members to it; what they leave out or change is refused, what they bring
of other extensions is none of ours. Sources: x402 specification v2, extensions `payment-identifier`, `bazaar`,
`eip2612GasSponsoring`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from contracts.errors import ExtensionEchoMismatch, MalformedMessage
from contracts.offers import PERMIT2, Offer
from contracts.schemes.gas_sponsoring import GAS_SPONSORING, SPONSORING_DECLARED

__all__ = ["check_echo", "declared", "payment_id"]

_BAZAAR = "bazaar"
_PAYMENT_IDENTIFIER = "payment-identifier"
_PAYMENT_ID = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)
_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
_IDENTIFIER_DECLARED: dict[str, Any] = {
    "info": {"required": False},
    "schema": {
        "$schema": _SCHEMA,
        "type": "object",
        "properties": {
            "required": {"type": "boolean"},
            "id": {"type": "string", "minLength": 16, "maxLength": 128, "pattern": "^[a-zA-Z0-9_-]+$"},
        },
        "required": ["required"],
    },
}

_MESSAGES = [{"role": "user", "content": "Say hello."}]
# An example of what each route takes and gives, besides the model.
_EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/v1/chat/completions": (
        {"messages": _MESSAGES},
        {"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": "Hello."}}]},
    ),
    "/v1/completions": ({"prompt": "Hello"}, {"object": "text_completion", "choices": [{"text": "."}]}),
    "/v1/responses": ({"input": "Say hello."}, {"object": "response", "output": []}),
    "/v1/messages": (
        {"max_tokens": 100, "messages": _MESSAGES},
        {"type": "message", "content": [{"type": "text", "text": "Hello."}]},
    ),
    "/v1/embeddings": ({"input": "Hello"}, {"object": "list", "data": [{"object": "embedding", "embedding": [0.5]}]}),
}


def declared(path: str, model: str | None, offers: Sequence[Offer], *, sponsors: bool) -> dict[str, Any]:
    """Return the `extensions` of a 402; `sponsors` says that token permits are submitted here."""
    extensions = {_PAYMENT_IDENTIFIER: _IDENTIFIER_DECLARED}
    if sponsors and any(offer.method == PERMIT2 and offer.asset.has_permit for offer in offers):
        extensions[GAS_SPONSORING] = SPONSORING_DECLARED
    if path in _EXAMPLES:
        extensions[_BAZAAR] = _discovery(model, *_EXAMPLES[path])
    return extensions


def check_echo(extensions: dict[str, Any] | None, ours: dict[str, Any]) -> None:
    """Raise `ExtensionEchoMismatch` where an extension of ours comes back with another `info` than was declared."""
    for name, echo in (extensions or {}).items():
        if name in ours and not _contains(_info(echo), ours[name]["info"]):
            raise ExtensionEchoMismatch(f"extensions.{name[:40]}.info: lacks or changes what was declared")


def payment_id(extensions: dict[str, Any] | None) -> str | None:
    """Return the name that the client gave its payment, if any. Raises `MalformedMessage`."""
    info = _info((extensions or {}).get(_PAYMENT_IDENTIFIER))
    stated = info.get("id") if isinstance(info, dict) else None
    if stated is None:
        return None
    if not isinstance(stated, str) or not _PAYMENT_ID.fullmatch(stated):
        raise MalformedMessage(
            f"extensions.{_PAYMENT_IDENTIFIER}.info.id: expected 16 to 128 letters, digits, - and _ of ASCII"
        )
    return stated


def _info(extension: Any) -> Any:
    return extension.get("info") if isinstance(extension, dict) else None


def _contains(echo: Any, ours: Any) -> bool:
    """Tell whether `echo` has every member of ours unchanged; objects may have gained members, lists may not."""
    if isinstance(ours, dict):
        return isinstance(echo, dict) and all(name in echo and _contains(echo[name], ours[name]) for name in ours)
    return type(echo) is type(ours) and bool(echo == ours)


def _discovery(model: str | None, body: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
    asked = {"model": model or "MODEL"} | body
    return {
        "info": {
            "input": {"type": "http", "method": "POST", "bodyType": "json", "body": asked},
            "output": {"type": "json", "example": output},
        },
        "schema": {
            "$schema": _SCHEMA,
            "type": "object",
            "properties": {
                "input": {
                    "type": "object",
                    "properties": {
                        "type": {"type": "string", "const": "http"},
                        "method": {"type": "string", "enum": ["POST"]},
                        "bodyType": {"type": "string", "enum": ["json"]},
                        "body": {"type": "object", "required": list(asked)},
                    },
                    "required": ["type", "method", "bodyType", "body"],
                },
                "output": {"type": "object", "required": ["type"]},
            },
            "required": ["input"],
        },
    }
