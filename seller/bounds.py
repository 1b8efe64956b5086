"""The most that one request can come to: read from its body, and written into it where the client left it open.

A model server must read what was read here. So the body that goes on is written anew from what was understood of it,
and a body in which another parser could find another bound (a key in another letter case) is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from contracts.errors import AboveCeiling, MalformedMessage
from contracts.wire import decode_json
from seller.limits import CHOICES_MAX, TEXT_BYTES_PER_TOKEN
from seller.pricing import UsagePrice
from seller.usage import Dialect

__all__ = ["BoundedRequest", "bound_request"]

Fields = dict[str, Any]

# Where a request for a model says what is to be read, and what of it is text: not images, files or schemas.
_PROMPT_FIELDS = ("messages", "prompt", "input", "system", "instructions", "query", "documents")
_TEXT_MEMBERS = ("content", "text")
_CHOICE_FIELDS = ("n", "best_of")
_STREAM_FIELDS = ("stream", "stream_options")
# What makes a model work beyond its request, or read what is not in it: neither is bounded by the body's length.
_BOUNDLESS = {
    "background": "what runs on without its request",
    "previous_response_id": "what a server remembers of earlier requests",
    "conversation": "what a server remembers of earlier requests",
}


@dataclass(frozen=True, slots=True)
class BoundedRequest:
    """What goes on to the model server.

    `adds_usage`: its stream will carry an event with the usage that the client did not ask for. `input_tokens_least`
    is what the prompt comes to at the very least, for an answer whose usage is never told.
    """

    body: bytes
    adds_usage: bool
    input_tokens_least: int


def bound_request(body: bytes, dialect: Dialect, price: UsagePrice) -> BoundedRequest:
    """Bound one request by what its buyer signs.

    A token has at least one byte, so before the work the whole body counts, byte by byte, as input; what is read more
    than once counts as often. Raises `AboveCeiling` (400) for a request that could cost more than the ceiling, and
    `MalformedMessage` (400) for a body that is no JSON object or has a field of another type.
    """
    raw = decode_json(body, dict[str, msgspec.Raw], "body")
    watched = (*dialect.output_fields, *dialect.pairs, *_CHOICE_FIELDS, *_STREAM_FIELDS, *_BOUNDLESS)
    _refuse_other_case(raw, watched)
    fields: Fields = {name: decode_json(raw[name], Any, name) for name in watched if name in raw}
    for name, what in _BOUNDLESS.items():
        if fields.get(name):
            raise MalformedMessage(f"{name}: {what} is not sold by usage")
    read_bytes = len(body) + _read_again_bytes(raw, fields, dialect)
    fits = price.output_that_fits(read_bytes)
    if fits is None:
        raise AboveCeiling(
            f"body: {read_bytes} bytes may be as many tokens, which cost more than the {price.ceiling_atomic} atomic "
            "units that are authorized for one call",
            remedy="send a shorter prompt",
        )
    changed: dict[str, Any] = {}
    if dialect.output_fields and price.per_million_output_atomic:
        changed = _bounded_output(fields, raw, dialect, price, fits)
    adds_usage = False
    if dialect.usage_on_request and _boolean(fields, "stream"):
        options = _stream_options(fields)
        adds_usage = options.get("include_usage") is not True
        changed["stream_options"] = {**options, "include_usage": True}
    written = msgspec.json.encode({**raw, **changed})
    return BoundedRequest(written, adds_usage, _least_tokens(raw))


def _bounded_output(
    fields: Fields, raw: dict[str, msgspec.Raw], dialect: Dialect, price: UsagePrice, fits: int
) -> dict[str, Any]:
    """Return the bound to write into the request, if it has none. Raises `AboveCeiling`."""
    choices = max([1, *(_positive(fields, name) or 1 for name in _CHOICE_FIELDS)])
    if choices > CHOICES_MAX:
        raise MalformedMessage(f"n: at most {CHOICES_MAX} answers are made at once")
    answers = choices * _prompts(raw)
    stated = [bound for name in dialect.output_fields if (bound := _positive(fields, name)) is not None]
    wanted = max(stated) if stated else min(price.max_output_tokens, fits // answers)
    if wanted * answers > fits or wanted < 1:
        name = next((name for name in dialect.output_fields if fields.get(name) is not None), dialect.output_fields[0])
        many = f" for each of {answers} answers" if answers > 1 else ""
        if fits // answers < 1:
            raise AboveCeiling(
                f"body: after a prompt of this length the {price.ceiling_atomic} atomic units that are authorized for "
                f"one call leave no output{many}",
                remedy="send a shorter prompt" + (", or ask for fewer answers" if answers > 1 else ""),
            )
        raise AboveCeiling(
            f"{name}: {wanted} tokens{many} could cost more than the {price.ceiling_atomic} atomic units that are "
            f"authorized for one call; beside this prompt {fits // answers} fit",
            remedy=f"send {name} of at most {fits // answers}, or a shorter prompt",
        )
    return {} if stated else {dialect.output_fields[0]: wanted}


def _refuse_other_case(names: Iterable[str], watched: Iterable[str]) -> None:
    # Servers in Go read a key in any letter case.
    folded = {name.casefold(): name for name in watched}
    for name in names:
        meant = folded.get(name.casefold(), name)
        if meant != name:
            raise MalformedMessage(f"{name[:40]}: is spelled in another letter case; write `{meant}`")


def _positive(fields: Fields, name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    # A bound of 0 or -1 is "no bound" to some servers.
    if type(value) is not int or value < 1:
        raise MalformedMessage(f"{name}: expected a whole number of at least 1")
    return value


def _boolean(fields: Fields, name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise MalformedMessage(f"{name}: expected true or false")
    return bool(value)


def _stream_options(fields: Fields) -> dict[str, Any]:
    options = fields.get("stream_options")
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise MalformedMessage("stream_options: expected an object")
    _refuse_other_case(options, ("include_usage",))
    return options


def _read_again_bytes(raw: dict[str, msgspec.Raw], fields: Fields, dialect: Dialect) -> int:
    """Return how many bytes are read once more: a query stands before each of its documents."""
    counts = {name: _texts(fields[name]) for name in dialect.pairs if name in fields}
    pairs = max(counts.values(), default=1)
    return (pairs - 1) * sum(len(bytes(raw[name])) for name, count in counts.items() if count < pairs)


def _texts(value: object) -> int:
    """Return how many texts one side of pairs holds; images and texts of one side may stand in `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return len(value) if isinstance(value, list) else 1


def _prompts(raw: dict[str, msgspec.Raw]) -> int:
    """Return how many prompts a request for completions holds: each is answered. A list of numbers is one prompt."""
    found = [decode_json(raw[name], Any, name) for name in ("prompt", "prompt_embeds") if name in raw]
    several = [prompt for prompt in found if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)]
    return max(1, sum(map(len, several)))


def _least_tokens(raw: dict[str, msgspec.Raw]) -> int:
    text_bytes = sum(_text_bytes(decode_json(raw[name], Any, name)) for name in _PROMPT_FIELDS if name in raw)
    return text_bytes // TEXT_BYTES_PER_TOKEN


def _text_bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list):
        return sum(_text_bytes(part) for part in value)
    if isinstance(value, dict):
        return sum(_text_bytes(value[name]) for name in _TEXT_MEMBERS if name in value)
    return 0
