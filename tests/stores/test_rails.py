"""Pools over Permit2 with their books in PostgreSQL: what `tests/buyer` asks on SQLite."""

from __future__ import annotations

import pytest

from buyer.home import STORE_VARIABLE
from tests.buyer import conftest, test_permit2_pool
from tests.stores.parts import suite_of
from tests.stores.servers import Server

# What only reads the chain or signs is the same on both stores.
ALIKE = {
    "test_a_pool_over_permit2_pays_a_token_of_18_decimals",
    "test_a_token_with_eip_3009_can_be_paid_over_permit2_too",
    "test_an_approval_is_bounded_shown_beforehand_and_can_be_taken_back",
    "test_a_ceiling_that_nobody_settles_in_time_has_cost_nothing",
    "test_nothing_is_signed_for_a_facilitator_that_is_not_named",
    "test_nothing_is_signed_where_the_contracts_are_missing_or_others",
    "test_one_transaction_revokes_a_word",
    "test_what_permit2_may_not_move_is_not_signed",
}
globals().update(suite_of(conftest, test_permit2_pool, without=ALIKE))


@pytest.fixture(autouse=True)
def pool_on_postgres(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_VARIABLE, postgres.new_database())
