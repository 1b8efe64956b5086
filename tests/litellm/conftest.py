"""One LiteLLM proxy for all tests here: it takes up to minutes to start on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.litellm.stack import Stack, stack


@pytest.fixture(scope="session")
def running_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, started once."""
    with stack(tmp_path_factory.mktemp("litellm")) as running:
        yield running
