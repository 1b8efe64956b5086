"""Usage in the answers of model servers, dialect by dialect. Pure.

Only fields that are whole numbers count; anything else is as if it were not there. Sources: OpenAI API reference (chat,
completions, responses, embeddings), Anthropic API reference (messages), Jina and Cohere as vLLM answers them (rerank).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seller.pricing import Usage

__all__ = ["DIALECTS", "Dialect", "is_usage_only", "merged"]

Document = Mapping[str, Any]

# Members of a streamed chat delta that are made of tokens.
_CHAT_WORDS = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call")
_MESSAGE_WORDS = ("text", "thinking", "partial_json")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one route of a model API speaks of tokens.

    `output_fields` are the request's bounds on its output, the one that is written when there is none first; a dialect
    without any generates nothing. `usage_on_request` says that a stream tells its usage only when asked to. `pairs` are
    the request's fields whose texts are read in pairs: one of a side is read anew for each of the other's.
    `usage_of` reads a document or one event of a stream, `deltas_of` counts the pieces of output in an event.
    """

    usage_of: Callable[[Document], Usage]
    deltas_of: Callable[[Document], int] = lambda _: 0
    output_fields: tuple[str, ...] = ()
    usage_on_request: bool = False
    pairs: tuple[str, ...] = ()


def merged(earlier: Usage, later: Usage) -> Usage:
    """Return what is known after two reports of one call: each figure as it was told last."""
    return Usage(
        earlier.input_tokens if later.input_tokens is None else later.input_tokens,
        earlier.output_tokens if later.output_tokens is None else later.output_tokens,
    )


def is_usage_only(event: Document) -> bool:
    """Tell whether an event is the one that `stream_options.include_usage` adds: usage, and no choices."""
    return event.get("choices") == [] and isinstance(event.get("usage"), dict)


def _completion_usage(document: Document) -> Usage:
    usage = _member(document, "usage")
    input_tokens, output_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if input_tokens is None and output_tokens is None:
        # Of embeddings and ranks some servers tell the sum, which is all input.
        return Usage(_count(usage, "total_tokens"))
    return Usage(input_tokens, output_tokens)


def _response_usage(document: Document) -> Usage:
    """The document itself, or the last events of a stream, which carry it as `response`."""
    usage = _member(document if "type" not in document else _member(document, "response"), "usage")
    return Usage(_count(usage, "input_tokens"), _count(usage, "output_tokens"))


def _message_usage(document: Document) -> Usage:
    """The document; or `message_start`, which knows the input; or `message_delta`, which knows the output."""
    kind = document.get("type")
    usage = _member(_member(document, "message") if kind == "message_start" else document, "usage")
    # Anthropic counts what was read from or written to a prompt cache apart from `input_tokens`.
    parts = [_count(usage, f"{name}input_tokens") for name in ("", "cache_creation_", "cache_read_")]
    input_tokens = None if parts[0] is None else sum(part or 0 for part in parts)
    return Usage(input_tokens, None if kind == "message_start" else _count(usage, "output_tokens"))


def _chat_deltas(event: Document) -> int:
    deltas = [_member(choice, "delta") for choice in _choices(event)]
    return sum(any(delta.get(name) for name in _CHAT_WORDS) for delta in deltas)


def _completion_deltas(event: Document) -> int:
    return sum(bool(choice.get("text")) for choice in _choices(event))


def _response_deltas(event: Document) -> int:
    return int(str(event.get("type")).endswith(".delta") and bool(event.get("delta")))


def _message_deltas(event: Document) -> int:
    if event.get("type") != "content_block_delta":
        return 0
    return int(any(_member(event, "delta").get(name) for name in _MESSAGE_WORDS))


def _member(document: Document, name: str) -> Document:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _choices(event: Document) -> list[Document]:
    choices = event.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _count(usage: Document, name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and value >= 0 else None


# `n_predict` is llama.cpp's own word, which it takes before the others.
_OPENAI_BOUNDS = ("max_tokens", "max_completion_tokens", "n_predict")
_READS_ONLY = Dialect(_completion_usage)
# By the names that vLLM has had for the two sides.
_READS_PAIRS = Dialect(
    _completion_usage,
    pairs=("query", "queries", "documents", "items", "text_1", "text_2", "data_1", "data_2"),
)

DIALECTS: dict[str, Dialect] = {
    "/v1/chat/completions": Dialect(_completion_usage, _chat_deltas, _OPENAI_BOUNDS, usage_on_request=True),
    "/v1/completions": Dialect(_completion_usage, _completion_deltas, _OPENAI_BOUNDS, usage_on_request=True),
    "/v1/responses": Dialect(_response_usage, _response_deltas, ("max_output_tokens",)),
    "/v1/messages": Dialect(_message_usage, _message_deltas, ("max_tokens",)),
    "/v1/embeddings": _READS_ONLY,
    "/v1/rerank": _READS_PAIRS,
    "/v1/score": _READS_PAIRS,
}
