"""Calls by usage with the books in PostgreSQL: a core of what `tests/seller` asks on SQLite."""

from __future__ import annotations

import pytest

from tests.seller import test_upto
from tests.stores.parts import suite_of

_CORE = (
    "test_a_client_that_leaves_pays_for_what_was_made_until_then",
    "test_a_server_that_dies_in_mid_stream_is_paid_for_what_was_noted_and_no_more",
    "test_exposure_counts_the_ceiling_until_the_charge_is_known",
    "test_nothing_used_is_settled_without_a_transaction",
    "test_whoever_sends_the_payment_again_learns_the_charge_and_pays_no_more",
)

globals().update({name: test for name, test in suite_of(test_upto, without=set()).items() if name in _CORE})

pytestmark = pytest.mark.usefixtures("seller_on_postgres")
