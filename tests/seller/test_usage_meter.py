"""Goal: a meter reads what model servers report, in every dialect and however a stream is cut, and hides only that.

The answers are the stand-in model server's, in the shapes of the OpenAI and Anthropic APIs.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo import dialects
from seller.bounds import BoundedRequest, bound_request
from seller.metering import Meter
from seller.pricing import Usage, UsagePrice
from seller.usage import DIALECTS

# Input and output are told apart in every sum: a token of input costs 1,000, one of output 1.
PRICE = UsagePrice(0, 1_000_000_000, 1_000_000, 5, 1_000, 1_000)
PROMPT = "what is the weather like"
INPUT, OUTPUT = 5, 11
# Where generation is asked for, and how many events a stream begins with before its first piece of output.
OPENING_EVENTS = {"/v1/chat/completions": 1, "/v1/completions": 0, "/v1/responses": 3, "/v1/messages": 2}
GENERATING = tuple(OPENING_EVENTS)


def _body(path: str, **fields: Any) -> dict[str, Any]:
    said = {"messages": [{"role": "user", "content": PROMPT}], "prompt": PROMPT, "input": PROMPT}
    names = {"/v1/completions": "prompt", "/v1/responses": "input"}
    name = names.get(path, "messages")
    return {"model": "m", name: said[name], **fields}


def _answer(path: str, **fields: Any) -> dialects.Answer:
    return dialects.DIALECTS[path](_body(path, **fields))


def _meter(path: str, **fields: Any) -> tuple[Meter, dialects.Answer]:
    """Return a meter for a request, and what the model server answers to what goes on to it."""
    request = bound_request(json.dumps(_body(path, **fields)).encode(), DIALECTS[path], PRICE)
    return Meter(DIALECTS[path], PRICE, request), dialects.DIALECTS[path](json.loads(request.body))


def _cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut % (len(stream) + 1) for cut in cuts)
    return [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]


def _passed(meter: Meter, chunks: list[bytes]) -> bytes:
    return b"".join(meter.pass_on(chunk, last=number == len(chunks) - 1) for number, chunk in enumerate(chunks))


@pytest.mark.parametrize("path", GENERATING)
def test_a_document_tells_its_usage(path: str) -> None:
    meter, answer = _meter(path)
    meter.read_document(json.dumps(answer.document, indent=1).encode())
    assert meter.usage == Usage(INPUT, OUTPUT)
    assert meter.charge_atomic(whole=True) == 1_000 * INPUT + OUTPUT


@given(path=st.sampled_from(GENERATING), cuts=st.lists(st.integers(0, 10**6), max_size=30))
def test_a_stream_is_passed_on_to_the_byte_and_metered_however_it_is_cut(path: str, cuts: list[int]) -> None:
    meter, answer = _meter(path, stream=True)
    asked_for = b"".join(_answer(path, stream=True).frames)
    assert _passed(meter, _cut(b"".join(answer.frames), cuts)) == asked_for
    assert meter.charge_atomic(whole=True) == 1_000 * INPUT + OUTPUT


@given(path=st.sampled_from(GENERATING[:2]), cuts=st.lists(st.integers(0, 10**6), max_size=30))
def test_a_client_that_asked_for_usage_gets_it(path: str, cuts: list[int]) -> None:
    meter, answer = _meter(path, stream=True, stream_options={"include_usage": True})
    stream = b"".join(answer.frames)
    assert b'"usage"' in stream
    assert _passed(meter, _cut(stream, cuts)) == stream
    assert meter.usage == Usage(INPUT, OUTPUT)


@pytest.mark.parametrize("path", GENERATING)
def test_what_passed_of_a_stream_that_broke_off_is_counted(path: str) -> None:
    meter, answer = _meter(path, stream=True)
    _passed(meter, answer.frames[: OPENING_EVENTS[path] + 4])
    told_input = INPUT if path == "/v1/messages" else len(PROMPT) // 8
    assert meter.charge_atomic(whole=False) == 1_000 * told_input + 4


@pytest.mark.parametrize("path", GENERATING)
def test_a_broken_stream_never_costs_more_than_the_whole_one(path: str) -> None:
    meter, answer = _meter(path, stream=True)
    charges = []
    for frame in answer.frames:
        meter.pass_on(frame)
        charges.append(meter.charge_atomic(whole=False))
    assert charges == sorted(charges)
    assert charges[-1] == meter.charge_atomic(whole=True)


def test_an_answer_that_tells_no_usage_costs_the_minimum() -> None:
    meter, _ = _meter("/v1/chat/completions")
    meter.read_document(b'{"choices": [{"message": {"content": "long"}}]}')
    assert not meter.was_told
    assert meter.charge_atomic(whole=True) == PRICE.minimum_atomic


def test_usage_above_the_ceiling_is_charged_at_the_ceiling() -> None:
    meter, _ = _meter("/v1/chat/completions")
    meter.read_document(b'{"usage": {"prompt_tokens": 1000000, "completion_tokens": 1}}')
    assert meter.charge_atomic(whole=True) == PRICE.ceiling_atomic


@pytest.mark.parametrize(
    ("path", "document", "usage"),
    [
        ("/v1/embeddings", {"usage": {"prompt_tokens": 7, "total_tokens": 7}}, Usage(7)),
        ("/v1/rerank", {"usage": {"total_tokens": 9}}, Usage(9)),
        ("/v1/messages", {"usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 2}}, Usage(7, 2)),
        ("/v1/responses", {"object": "response", "usage": None}, Usage()),
        ("/v1/chat/completions", {"usage": {"prompt_tokens": -1, "completion_tokens": True}}, Usage()),
        ("/v1/chat/completions", {"usage": {"prompt_tokens": "7", "completion_tokens": 2.0}}, Usage()),
        ("/v1/chat/completions", {"usage": [1]}, Usage()),
    ],
)
def test_only_whole_numbers_of_tokens_are_believed(path: str, document: dict[str, Any], usage: Usage) -> None:
    assert DIALECTS[path].usage_of(document) == usage


def test_figures_that_come_with_every_piece_are_read_as_the_last_of_them() -> None:
    meter = Meter(DIALECTS["/v1/chat/completions"], PRICE, BoundedRequest(b"", True, 0))
    for made in range(1, 4):
        piece = {"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 2, "completion_tokens": made * 2}}
        frame = b"data: " + json.dumps(piece).encode() + b"\n\n"
        assert meter.pass_on(frame) == frame
    assert meter.usage == Usage(2, 6)


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_a_stream_that_is_no_event_stream_passes_unharmed(chunks: list[bytes]) -> None:
    meter = Meter(DIALECTS["/v1/chat/completions"], PRICE, BoundedRequest(b"", True, 0))
    chunks = [*chunks, b"."]
    assert _passed(meter, chunks) == b"".join(chunks)
    assert meter.charge_atomic(whole=True) == PRICE.minimum_atomic
