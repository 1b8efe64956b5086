"""The gateway with its pool in PostgreSQL, where the pool's steps run in threads: a core of what `tests/gateway` asks.

Repetitions, lost answers, clients that leave and restarts are where a step in a thread could go wrong.
"""

from __future__ import annotations

import pytest

from buyer.home import STORE_VARIABLE
from tests.gateway import conftest, test_openai_client, test_repetition
from tests.stores.parts import suite_of
from tests.stores.servers import Server

globals().update(suite_of(conftest, without=set()))
test_a_chat_is_paid_once = test_openai_client.test_a_chat_costs_one_authorization_and_tells_what_it_cost
test_a_stream_arrives_whole = test_openai_client.test_a_stream_arrives_whole_and_in_order_with_its_receipt_as_a_comment


@pytest.fixture(autouse=True)
def pool_on_postgres(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_VARIABLE, postgres.new_database())


class TestWithoutAnId(test_repetition.TestWithoutAnId):
    """A repetition that is known by its body."""
