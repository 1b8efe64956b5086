"""Goal: the map leads to what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
_NAMED = re.compile(r"(?<![\w/])(?:contracts|registry|buyer|seller|gateway)/[a-z_0-9/]+(?:\.py)?")


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_module_that_is_named_exists(page: str) -> None:
    named = {path.rstrip("/") for path in _NAMED.findall((REPO / page).read_text("utf-8"))}
    assert len(named) > 4
    assert [path for path in sorted(named) if not any((REPO / each).exists() for each in (path, f"{path}.py"))] == []
