"""The scoreboard of the attack suite: `python -m tests.attacks.score` runs the suite and prints it.

Every attack ends with a count of money and goods (`tests.attacks.parts`); the sums are kept here for one run. Each row
of `Score.faults` must be nought, or the run fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields

__all__ = ["SCORE", "Score", "lines"]

_FAULTS = {
    "goods_without_payment": "goods without payment",
    "money_without_goods": "money taken without goods",
    "runs_without_payment": "handler runs without payment",
    "server_errors": "answers 5xx to client input",
    "extra_authorizations": "authorizations beyond one per purchase",
    "overcharges": "payments above what was agreed, or to others",
}
_ALLOWED = {
    "withdrawn_runs": "runs whose payer withdrew the money meanwhile (no goods left)",
    "failed_runs": "runs whose model failed (not charged)",
    "unpaid_credit": "runs on credit that were never paid (inside the payer's cap)",
}


@dataclass
class Score:
    """Sums over attacks: the first six are faults, the next three what the design allows, the rest how much was seen.

    A run without payment is one that started with no payment that was verified, durably reserved and, at that moment,
    settleable, settled, or on credit inside its payer's cap. Nothing is taken off that number.
    """

    goods_without_payment: int = 0
    money_without_goods: int = 0
    runs_without_payment: int = 0
    server_errors: int = 0
    extra_authorizations: int = 0
    overcharges: int = 0
    withdrawn_runs: int = 0
    failed_runs: int = 0
    unpaid_credit: int = 0
    attacks: int = 0
    answers: int = 0
    goods: int = 0
    paid: int = 0
    runs: int = 0
    purchases: int = 0
    authorizations: int = 0

    def add(self, other: Score) -> None:
        """Add another count to this one."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def faults(self) -> dict[str, int]:
        """The rows that must be nought, in words."""
        return {words: getattr(self, name) for name, words in _FAULTS.items()}

    @property
    def is_clean(self) -> bool:
        """Whether no promise was broken."""
        return not any(self.faults.values())


SCORE = Score()
"""The sums of this run."""


def lines(score: Score) -> Iterator[str]:
    """Yield the scoreboard, line by line."""
    width = max(map(len, [*_FAULTS.values(), *_ALLOWED.values()]))
    for words, number in score.faults.items():
        yield f"{words:<{width}}  {number}"
    yield "allowed by the design, and bounded:"
    for name, words in _ALLOWED.items():
        yield f"{words:<{width}}  {getattr(score, name)}"
    yield (
        f"over {score.attacks} attacks: {score.answers} answers of sellers, {score.runs} handler runs, "
        f"{score.goods} goods, {score.paid} payments on chain; {score.purchases} purchases at hostile sellers, "
        f"{score.authorizations} authorizations sent to them"
    )


def main() -> int:
    """Run the suite; the summary prints the scoreboard."""
    import pytest

    return int(pytest.main(["tests/attacks", "-q", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
