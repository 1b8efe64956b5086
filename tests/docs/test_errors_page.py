"""Goal: whoever meets an error finds it on docs/errors.md, with its status, its exit code and what to do."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.errors_page import PAGE, filled

REPO = Path(__file__).parents[2]
# Errors of the gateway that are no exceptions: `Problem(404, "not_found", …)`.
_PROBLEM = re.compile(r'Problem\(\s*(\d{3}),\s*"([a-z_]+)"')
_SELLERS_OWN = ("payment_required", "method_not_allowed", "answer_incomplete")


def rows(text: str) -> set[tuple[str, str]]:
    """Return each code of the page's tables with its status."""
    found = re.findall(r"^\| (`[a-z_0-9`, ]+`) \| (\d*) \|", text, re.MULTILINE)
    return {(code.strip("`"), status) for codes, status in found for code in codes.split(", ")}


def test_the_page_is_as_the_errors_are() -> None:
    text = PAGE.read_text("utf-8")
    assert filled(text) == text, "run `python -m tests.docs.errors_page`"


def test_the_answers_that_are_no_exceptions_are_there_too() -> None:
    listed = rows(PAGE.read_text("utf-8"))
    answered = {
        (code, status)
        for path in (REPO / "gateway").rglob("*.py")
        for status, code in _PROBLEM.findall(path.read_text("utf-8"))
    }
    assert len(answered) > 15
    assert answered - listed == set()
    assert set(_SELLERS_OWN) <= {code for code, _ in listed}
