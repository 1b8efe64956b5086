"""The registry's bench runs to its end, and what it says of the first results is the generator's knowledge."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.registry import main, measure
from bench.registry_town import QUERIES, town

REGISTRATIONS = 240


def test_a_small_town_is_read_and_the_first_result_of_every_query_is_payable() -> None:
    document = measure(REGISTRATIONS, 3)
    assert (document["registrations"], document["agents"], document["useful"]) == (REGISTRATIONS, REGISTRATIONS, 12)
    assert (document["queries"], document["top_payable"]) == (10, 10)
    assert {"sync_s", "search_ms_median"} <= document.keys()
    assert {(each["state"], each["verdict"]) for each in document["results"]} == {("payable", "verified")}


def test_a_town_follows_from_its_seed_alone() -> None:
    assert town(400, 5, 80) == town(400, 5, 80) != town(400, 6, 80)


def test_one_in_twenty_is_useful_and_every_trap_is_there() -> None:
    entries = town(4000, 1, 80)
    kinds = Counter(entry.kind for entry in entries)
    assert kinds["useful"] == 200
    assert set(kinds) == {
        *("useful", "spam", "empty", "malformed", "dead", "hostile", "copy", "thief", "trap", "redirect", "huge")
    }
    assert {entry.topic for entry in entries if entry.kind == "useful"} == set(range(len(QUERIES)))


def test_too_small_a_town_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--registrations", "5"])
    assert "at least 200" in capsys.readouterr().err
