"""Goal: any OpenAI client buys by saying `paid/<model>`. Method: the official client, and a seller that verifies."""

from __future__ import annotations

import json

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from buyer.pool import Counts
from tests.gateway.conftest import COUNT, Street
from tests.gateway.parts import MODEL, PRICE_ATOMIC, TRANSACTION

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


def spent(street: Street, count: int) -> None:
    assert street.gateway.counts() == Counts(ready=COUNT - count, spent=count)
    assert len(set(street.seller.nonces)) == len(street.seller.nonces) == count


def test_a_chat_costs_one_authorization_and_tells_what_it_cost(street: Street) -> None:
    raw = street.openai.chat.completions.with_raw_response.create(model=f"paid/{MODEL}", messages=MESSAGES)
    assert raw.parse().choices[0].message.content
    assert raw.headers["x-farebox-purchase"] == "chat"
    assert raw.headers["x-farebox-model"] == MODEL
    assert raw.headers["x-farebox-price-atomic"] == str(PRICE_ATOMIC)
    assert raw.headers["x-farebox-receipt"].startswith("rcpt_")
    assert raw.headers["x-farebox-transaction"] == TRANSACTION
    assert raw.headers["payment-response"]
    assert "set-cookie" not in raw.headers
    spent(street, 1)


def test_a_stream_arrives_whole_and_in_order_with_its_receipt_as_a_comment(street: Street) -> None:
    stream = street.openai.chat.completions.create(model=f"paid/{MODEL}", messages=MESSAGES, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    whole = street.openai.chat.completions.create(model=f"paid/{MODEL}", messages=MESSAGES)
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 3

    body = {"model": f"paid/{MODEL}", "messages": MESSAGES, "stream": True}
    text = street.http.post("/v1/chat/completions", json=body).text
    frames = text.split("\n\n")
    assert frames[-3] == "data: [DONE]"
    comment = frames[-2]
    assert comment.startswith(": farebox ")
    told = json.loads(comment.removeprefix(": farebox "))
    assert told["price_atomic"] == str(PRICE_ATOMIC)
    assert told["purchase"] == "chat"
    assert told["transaction"] == TRANSACTION
    spent(street, 3)


def test_chunks_are_passed_on_before_the_seller_has_finished(street: Street) -> None:
    metadata = {"x-test-hold": "gate", "x-test-hold-after-chunks": "3"}
    body = {"model": f"paid/{MODEL}", "messages": MESSAGES, "stream": True, "metadata": metadata}
    with street.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_raw()
        early = b""
        while early.count(b"data:") < 3:
            early += next(chunks)
        assert b"[DONE]" not in early
        street.release("gate")
        late = b"".join(chunks)
    assert b"data: [DONE]" in late


def test_completions_embeddings_and_responses(street: Street) -> None:
    client = street.openai
    assert client.completions.create(model=f"paid/{MODEL}", prompt="hello").choices[0].text
    assert client.embeddings.create(model=f"paid/{MODEL}", input="hello").data[0].embedding
    assert client.responses.create(model=f"paid/{MODEL}", input="hello").output_text
    events = list(client.responses.create(model=f"paid/{MODEL}", input="hello", stream=True))
    assert events[-1].type == "response.completed"
    spent(street, 4)


def test_an_anthropic_message_and_its_errors(street: Street) -> None:
    body = {"model": f"paid/{MODEL}", "max_tokens": 10, "messages": MESSAGES}
    headers = {"x-api-key": "secret", "anthropic-version": "2023-06-01"}
    answer = street.http.post("/v1/messages?beta=true", json=body, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["type"] == "message"
    path, seen = street.seller.requests[-1]
    assert path == "/v1/messages?beta=true"
    assert seen["anthropic-version"] == "2023-06-01"
    assert "x-api-key" not in seen

    missing = street.http.post("/v1/messages", json={**body, "model": "paid/none"})
    assert missing.status_code == 404
    assert missing.json()["type"] == "error"
    assert missing.json()["error"]["type"] == "not_found_error"


def test_the_seller_sees_the_body_unchanged_but_for_the_model(street: Street) -> None:
    raw = (
        b'{ "model":"paid/demo-model", "messages":[ {"role":"user","content":"h\\u00e9llo \xc3\xa9"} ],'
        b' "seed":123456789012345678901234567890, "temperature":1.10, "x":{"a":1e2,"b":[true,null]} }'
    )
    assert street.http.post("/v1/chat/completions", content=raw).status_code == 200
    seen = street.seller.presented[-1][1]
    for part in (
        b'[ {"role":"user","content":"h\\u00e9llo \xc3\xa9"} ]',
        b"123456789012345678901234567890",
        b"1.10",
        b'{"a":1e2,"b":[true,null]}',
    ):
        assert part in seen
    assert json.loads(seen)["model"] == MODEL


def test_credentials_and_cookies_of_the_client_do_not_reach_the_seller(street: Street) -> None:
    headers = {
        "authorization": "Bearer sk-of-the-user",
        "cookie": "session=1",
        "x-forwarded-for": "10.0.0.1",
        "openai-organization": "org-1",
        "payment-signature": "forged",
        "x-payment": "forged",
    }
    body = {"model": MODEL, "messages": MESSAGES}
    assert street.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    _, seen = street.seller.requests[-1]
    assert not {"authorization", "cookie", "x-forwarded-for", "openai-organization", "x-payment"} & set(seen)
    assert seen["payment-signature"] != "forged"


def test_the_model_list_has_bare_names_with_prices(street: Street) -> None:
    models = street.openai.models.list().data
    assert [model.id for model in models] == [MODEL]
    entry = street.http.get("/v1/models").json()["data"][0]["farebox"]
    assert (entry["price_atomic"], entry["price"], entry["paid_id"]) == ("1000", "0.001 USDC", f"paid/{MODEL}")
    assert entry["sellers"] == ["chat"]
    assert street.openai.models.retrieve(f"paid/{MODEL}").id == MODEL
    assert street.http.get("/v1/models/none").status_code == 404
    spent(street, 0)


def test_the_client_reads_our_errors(street: Street) -> None:
    with pytest.raises(openai.NotFoundError) as failed:
        street.openai.chat.completions.create(model="paid/none", messages=MESSAGES)
    assert failed.value.code == "not_found"
    assert "farebox buy" in failed.value.message
