"""What the model-server stand-in says, in the shapes of the OpenAI and Anthropic APIs. Pure: no clock, no chance.

Every dialect gives the same answer twice: as one document, and as the server-sent events of a stream.
Sources: OpenAI API reference (chat, completions, responses, embeddings), Anthropic API reference (messages).
"""

from __future__ import annotations

import hashlib
import struct
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

__all__ = ["DIALECTS", "Answer", "BadRequest", "answer_text", "embeddings_document", "hash_vectors", "models_document"]

# A fixed moment: two equal requests get byte-equal answers.
_CREATED_S = 1_700_000_000
_HASH_DIMENSIONS = 8

Body = Mapping[str, Any]


class BadRequest(Exception):
    """The request lacks a field or has it in a wrong shape; the text names the field."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: the whole document, and the frames of the same answer as a stream."""

    document: dict[str, Any]
    frames: list[bytes]


def answer_text(prompt: str) -> str:
    """Return the stand-in's whole answer to a prompt: eleven pieces, no two alike, told apart by the prompt's hash."""
    return "".join(_pieces(prompt))


def hash_vectors(texts: Sequence[str]) -> list[list[float]]:
    """Return one deterministic unit vector a text. It carries no meaning: a stand-in for real embeddings."""
    vectors = []
    for text in texts:
        raw = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:_HASH_DIMENSIONS]]
        length = sum(x * x for x in raw) ** 0.5
        vectors.append([x / length for x in raw])
    return vectors


def models_document(models: Sequence[str]) -> dict[str, Any]:
    """Return the body of `GET /v1/models`."""
    entries = [{"id": model, "object": "model", "created": _CREATED_S, "owned_by": "stand-in"} for model in models]
    return {"object": "list", "data": entries}


def embeddings_document(
    body: Body, embed: Callable[[Sequence[str]], Sequence[Sequence[float]]], count_tokens: Callable[[str], int]
) -> dict[str, Any]:
    """Return the body of `POST /v1/embeddings`; vectors as numbers or, with `encoding_format: base64`, as float32."""
    texts = _embedding_input(body.get("input"))
    as_base64 = body.get("encoding_format", "float") == "base64"
    entries = []
    for index, vector in enumerate(embed(texts)):
        shown = b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if as_base64 else list(vector)
        entries.append({"object": "embedding", "index": index, "embedding": shown})
    tokens = sum(count_tokens(text) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": entries, "model": body["model"], "usage": usage}


def chat(body: Body) -> Answer:
    """`POST /v1/chat/completions`; `stream_options.include_usage` adds the usage frame."""
    prompt = _last_message(body)
    identity = {"id": _identity("chatcmpl", prompt), "created": _CREATED_S, "model": body["model"]}
    usage = _usage(prompt)
    message = {"role": "assistant", "content": answer_text(prompt), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}

    def chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        part = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**identity, "object": "chat.completion.chunk", "choices": [part]}

    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": piece}) for piece in _pieces(prompt)]
    chunks.append(chunk({}, "stop"))
    if _wants_usage(body):
        chunks.append({**identity, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    document = {**identity, "object": "chat.completion", "choices": [choice], "usage": usage}
    return Answer(document, [*map(_frame, chunks), b"data: [DONE]\n\n"])


def completion(body: Body) -> Answer:
    """`POST /v1/completions`."""
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise BadRequest("prompt: expected a string")
    identity = {
        "id": _identity("cmpl", prompt),
        "object": "text_completion",
        "created": _CREATED_S,
        "model": body["model"],
    }

    def part(text: str, finish: str | None) -> dict[str, Any]:
        return {**identity, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]}

    chunks = [part(piece, None) for piece in _pieces(prompt)] + [part("", "stop")]
    if _wants_usage(body):
        chunks.append({**identity, "choices": [], "usage": _usage(prompt)})
    document = {**part(answer_text(prompt), "stop"), "usage": _usage(prompt)}
    return Answer(document, [*map(_frame, chunks), b"data: [DONE]\n\n"])


def response(body: Body) -> Answer:
    """`POST /v1/responses`."""
    prompt = body["input"] if isinstance(body.get("input"), str) else _last_message(body, "input")
    item_id = _identity("msg", prompt)
    content = {"type": "output_text", "text": answer_text(prompt), "annotations": []}
    item = {"type": "message", "id": item_id, "status": "completed", "role": "assistant", "content": [content]}
    tokens = _usage(prompt)
    usage = {
        "input_tokens": tokens["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": tokens["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens["total_tokens"],
    }
    empty = {
        "id": _identity("resp", prompt),
        "object": "response",
        "created_at": _CREATED_S,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": body["model"],
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }
    document = {**empty, "status": "completed", "output": [item], "usage": usage}
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}
    opened = {**item, "status": "in_progress", "content": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": empty},
        {"type": "response.output_item.added", "output_index": 0, "item": opened},
        {"type": "response.content_part.added", **place, "part": {**content, "text": ""}},
    ]
    events += [{"type": "response.output_text.delta", **place, "delta": piece} for piece in _pieces(prompt)]
    events += [
        {"type": "response.output_text.done", **place, "text": content["text"]},
        {"type": "response.content_part.done", **place, "part": content},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": document},
    ]
    return Answer(document, [_event({**event, "sequence_number": n}) for n, event in enumerate(events)])


def message(body: Body) -> Answer:
    """`POST /v1/messages` (Anthropic)."""
    prompt = _last_message(body)
    tokens = _usage(prompt)
    document = {
        "id": _identity("msg", prompt),
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": answer_text(prompt)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": tokens["prompt_tokens"], "output_tokens": tokens["completion_tokens"]},
    }
    opened = {
        **document,
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": tokens["prompt_tokens"], "output_tokens": 0},
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": opened},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ]
    events += [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        for piece in _pieces(prompt)
    ]
    ending = {"stop_reason": "end_turn", "stop_sequence": None}
    events += [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ending, "usage": {"output_tokens": tokens["completion_tokens"]}},
        {"type": "message_stop"},
    ]
    return Answer(document, [_event(event) for event in events])


DIALECTS: dict[str, Callable[[Body], Answer]] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/responses": response,
    "/v1/messages": message,
}


def _pieces(prompt: str) -> list[str]:
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:8]
    return ["Stand-in ", "answer ", f"{mark}: ", "one ", "two ", "three ", "four ", "five ", "six ", "seven ", "eight."]


def _usage(prompt: str) -> dict[str, int]:
    asked, answered = len(prompt.split()), len(_pieces(prompt))
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _identity(prefix: str, prompt: str) -> str:
    return f"{prefix}-{hashlib.sha256(prompt.encode()).hexdigest()[:24]}"


def _wants_usage(body: Body) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _frame(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def _event(document: dict[str, Any]) -> bytes:
    return b"event: " + str(document["type"]).encode() + b"\n" + _frame(document)


def _last_message(body: Body, field: str = "messages") -> str:
    messages = body.get(field)
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise BadRequest(f"{field}: expected a list of at least one message object")
    content = messages[-1].get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise BadRequest(f"{field}: the last message has no text `content`")
    return content


def _embedding_input(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest("input: expected a string or a list of strings")
    return texts
