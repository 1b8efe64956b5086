"""Credit with the books in PostgreSQL: what `tests/seller` asks on SQLite."""

from __future__ import annotations

import pytest

from tests.seller import test_on_credit
from tests.stores.parts import suite_of

globals().update(suite_of(test_on_credit, without=set()))

pytestmark = pytest.mark.usefixtures("seller_on_postgres")
