"""Five paid calls with the official `openai` client, which knows nothing of payments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.demo.processes import DemoFailed

if TYPE_CHECKING:
    import openai

__all__ = ["CallResult", "chat_calls", "embedding_calls"]

_CALL_TIMEOUT_S = 120.0

_QUESTIONS = (
    "What is a farebox?",
    "Who pays for this call?",
    "Count to eight, please.",
    "Does this client hold a key?",
    "What did that cost?",
)
_STREAMED = 2

_SENTENCES = (
    "The weather is lovely today.",
    "It is so sunny outside!",
    "He drove to the stadium.",
    "What a beautiful, bright afternoon.",
    "The match begins at eight.",
)


@dataclass(frozen=True, slots=True)
class CallResult:
    """One paid call: what was asked, what came back, whether streamed, and the milliseconds to the first byte."""

    asked: str
    answered: str
    streamed: bool
    first_byte_ms: float


def chat_calls(base_url: str, api_key: str, model: str) -> Iterator[CallResult]:
    """Make five chat calls, one of them streamed. Raises `DemoFailed` when a call is not answered with text."""
    with _client(base_url, api_key) as client:
        for number, question in enumerate(_QUESTIONS):
            ask = _ask_streamed if number == _STREAMED else _ask
            with _told_as_failure(question):
                result = ask(client, model, question)
            if not result.answered:
                raise DemoFailed(f"the model answered {question!r} with nothing")
            yield result


def embedding_calls(base_url: str, api_key: str, model: str) -> Iterator[CallResult]:
    """Make five embedding calls; each answer tells the likeness to the first sentence. Raises `DemoFailed`."""
    first: list[float] = []
    with _client(base_url, api_key) as client:
        for sentence in _SENTENCES:
            with _told_as_failure(sentence):
                begun = time.perf_counter()
                with client.embeddings.with_streaming_response.create(model=model, input=sentence) as response:
                    first_byte_ms = _ms_since(begun)
                    vector = response.parse().data[0].embedding
            first = first or vector
            likeness = sum(x * y for x, y in zip(first, vector, strict=True))
            answered = f"{len(vector)} numbers; likeness to the first sentence {likeness:.3f}"
            yield CallResult(sentence, answered, streamed=False, first_byte_ms=first_byte_ms)


def _ask(client: openai.OpenAI, model: str, question: str) -> CallResult:
    begun = time.perf_counter()
    create = client.chat.completions.with_streaming_response.create
    with create(model=model, messages=[{"role": "user", "content": question}]) as response:
        first_byte_ms = _ms_since(begun)
        text = response.parse().choices[0].message.content or ""
    return CallResult(question, text, streamed=False, first_byte_ms=first_byte_ms)


def _ask_streamed(client: openai.OpenAI, model: str, question: str) -> CallResult:
    begun = time.perf_counter()
    stream = client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], stream=True)
    pieces: list[str] = []
    first_byte_ms: float | None = None
    for chunk in stream:
        first_byte_ms = first_byte_ms or _ms_since(begun)
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    return CallResult(question, "".join(pieces), streamed=True, first_byte_ms=first_byte_ms or _ms_since(begun))


def _client(base_url: str, api_key: str) -> openai.OpenAI:
    import openai

    # No retries, so that a call that needed a second try does not look like a good one.
    http_client = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(
        base_url=base_url, api_key=api_key, max_retries=0, timeout=_CALL_TIMEOUT_S, http_client=http_client
    )


@contextmanager
def _told_as_failure(asked: str) -> Iterator[None]:
    import openai

    try:
        yield
    except openai.OpenAIError as error:
        raise DemoFailed(f"the call {asked!r} failed: {error}") from error


def _ms_since(begun: float) -> float:
    return round((time.perf_counter() - begun) * 1000, 1)
