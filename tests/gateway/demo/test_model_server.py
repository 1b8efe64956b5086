"""The model-server stand-in speaks the dialects that real clients read, and obeys its knobs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from gateway.demo.dialects import answer_text
from gateway.demo.model_server import model_server_app

PROMPT = "What does a lighthouse keeper do?"
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": PROMPT}]
ANSWER = answer_text(PROMPT)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    command = [sys.executable, "-m", "gateway.demo.model_server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert found is not None
            yield found[0]
        finally:
            process.terminate()


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def inside() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(model_server_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://model") as client:
        yield client


def test_the_openai_client_reads_a_chat_answer_and_gets_the_same_one_again(client: openai.OpenAI) -> None:
    first, second = (client.chat.completions.create(model="demo-model", messages=QUESTION) for _ in range(2))
    assert first.choices[0].message.content == ANSWER
    assert first == second


def test_another_question_gets_another_answer(client: openai.OpenAI) -> None:
    asked = client.chat.completions.create(model="demo-model", messages=[{"role": "user", "content": "Why?"}])
    assert asked.choices[0].message.content == answer_text("Why?") != ANSWER


def test_a_chat_stream_adds_up_to_the_answer_in_distinct_pieces_and_tells_the_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo-model",
        messages=QUESTION,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == ANSWER
    assert len(pieces) == len(set(pieces)) > 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(pieces)


def test_the_openai_client_reads_completions_streamed_and_whole(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="demo-model", prompt="Why?")
    streamed = client.completions.create(model="demo-model", prompt="Why?", stream=True)
    assert whole.choices[0].text == "".join(chunk.choices[0].text for chunk in streamed) == answer_text("Why?")


def test_the_openai_client_reads_responses_streamed_and_whole(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="demo-model", input="Why?")
    assert whole.output_text == answer_text("Why?")
    events = list(client.responses.create(model="demo-model", input="Why?", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response == whole


def test_the_openai_client_reads_embeddings_in_both_encodings(client: openai.OpenAI) -> None:
    by_default = client.embeddings.create(model="demo-model", input=["a", "b"])
    as_floats = client.embeddings.create(model="demo-model", input=["a", "b"], encoding_format="float")
    for packed, plain in zip(by_default.data, as_floats.data, strict=True):
        assert packed.embedding == pytest.approx(plain.embedding, abs=1e-6)
        assert sum(x * x for x in plain.embedding) == pytest.approx(1)
    assert by_default.data[0].embedding != by_default.data[1].embedding


async def test_a_message_and_its_stream_say_the_same(inside: httpx.AsyncClient) -> None:
    body = {"model": "demo-model", "max_tokens": 50, "messages": QUESTION}
    whole = (await inside.post("/v1/messages", json=body)).json()
    assert whole["content"] == [{"type": "text", "text": ANSWER}]
    stream = (await inside.post("/v1/messages", json={**body, "stream": True})).text
    kinds = re.findall(r"^event: (\w+)$", stream, re.MULTILINE)
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert "".join(re.findall(r'"text_delta","text":"([^"]*)"', stream)) == ANSWER


async def test_the_models_are_listed_and_another_one_is_not_found(inside: httpx.AsyncClient) -> None:
    listed = (await inside.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["demo-model"]
    refused = await inside.post("/v1/chat/completions", json={"model": "other", "messages": QUESTION})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", {"model": "demo-model"}, "messages"),
        ("/v1/chat/completions", {"model": "demo-model", "messages": [{"role": "user", "content": 5}]}, "messages"),
        ("/v1/completions", {"model": "demo-model", "prompt": 5}, "prompt"),
        ("/v1/embeddings", {"model": "demo-model", "input": [1, 2]}, "input"),
        ("/v1/chat/completions", [1], "body"),
    ],
)
async def test_a_malformed_request_is_a_400_that_names_the_field(
    inside: httpx.AsyncClient, path: str, body: object, field: str
) -> None:
    refused = await inside.post(path, json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(f"{field}:")


@pytest.mark.parametrize("place", ["header", "metadata"])
async def test_the_status_knob_answers_an_openai_error(inside: httpx.AsyncClient, place: str) -> None:
    knob = {"x-test-status": "503"}
    body = {"model": "demo-model", "messages": QUESTION} | ({"metadata": knob} if place == "metadata" else {})
    answer = await inside.post("/v1/chat/completions", json=body, headers=knob if place == "header" else {})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [True, False])
def test_the_death_knob_breaks_the_connection_after_the_status_line(base_url: str, stream: bool) -> None:
    body = {"model": "demo-model", "messages": QUESTION, "stream": stream}
    request = httpx.Request(
        "POST", f"{base_url}/v1/chat/completions", json=body, headers={"x-test-die-after-chunks": "2"}
    )
    received = bytearray()

    def read_on(response: httpx.Response) -> None:
        for data in response.iter_raw():
            received.extend(data)

    with httpx.Client() as client:
        response = client.send(request, stream=True)
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            read_on(response)
    assert received.count(b"data: ") == (2 if stream else 0)


async def test_a_held_call_waits_for_its_release_and_is_counted_by_its_prompt(inside: httpx.AsyncClient) -> None:
    body = {"model": "demo-model", "messages": QUESTION}
    held = asyncio.create_task(inside.post("/v1/chat/completions", json=body, headers={"x-test-hold": "gate"}))
    while (await inside.get("/test/calls")).json()["calls"] == 0:  # noqa: ASYNC110 - polls as another process would
        await asyncio.sleep(0)
    assert not held.done()
    assert (await inside.post("/test/release/gate")).status_code == 204
    assert (await held).status_code == 200
    assert (await inside.get("/test/calls")).json() == {"calls": 1, "by_prompt": {PROMPT: 1}}


async def test_the_plain_paid_route_answers(inside: httpx.AsyncClient) -> None:
    assert (await inside.get("/paid")).json() == {"paid": True, "by": "stand-in"}
