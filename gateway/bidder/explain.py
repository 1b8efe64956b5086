"""Why an offer was chosen: the rule's own terms, and what moved the trees on that one row. Pure but for LightGBM."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

from gateway.bidder.events import Event
from gateway.bidder.features import FEATURES, Row, column
from gateway.bidder.model import Forest
from gateway.bidder.rule import on_time_logit
from gateway.bidder.task import TIERS

__all__ = ["Moved", "OfferTerms", "explain_model", "explain_rule"]

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class OfferTerms:
    """One offer of a decision in the terms of the rule. Money in whole tokens, times in seconds."""

    name: str
    tier: str
    price: float
    wait_s: float
    work_s: float
    slack_s: float
    p_on_time: float
    p_ok: float
    utility: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """How far one feature moved a head of the model on one row, in log-odds."""

    head: str
    feature: str
    value: float
    log_odds: float


def explain_rule(event: Event) -> list[OfferTerms]:
    """Return every offer that was looked at, best by the rule first."""
    value = event.view.task.value
    terms = []
    for place, (offer, row) in enumerate(zip(event.view.offers, event.view.rows, strict=True)):
        work_s = row[column("slack_s")] / row[column("slack_over_nominal")]
        on_time = 1 / (1 + exp(-on_time_logit(row)))
        ok = row[column("ok")]
        terms.append(
            OfferTerms(
                name=offer.name,
                tier=TIERS[int(row[column("tier")])],
                price=offer.price,
                wait_s=row[column("queue_per_slot")] / row[column("speed")],
                work_s=work_s,
                slack_s=row[column("slack_s")],
                p_on_time=on_time,
                p_ok=ok,
                utility=value * on_time * ok - offer.price,
                chosen=place == event.chosen,
            )
        )
    return sorted(terms, key=lambda each: -each.utility)


def explain_model(forest: Forest, row: Row) -> list[Moved]:
    """Return the features that moved the model most on one row, strongest first."""
    import numpy as np

    inputs = np.asarray([[*row, on_time_logit(row)]])
    moved = []
    for head, booster in (("on time", forest.on_time), ("good", forest.quality)):
        (contributions,) = booster.predict(inputs, num_threads=1, pred_contrib=True)
        # The last figure is what every row starts from.
        for name, value, log_odds in zip((*FEATURES, "rule"), inputs[0], contributions[:-1], strict=True):
            moved.append(Moved(head, name, float(value), float(log_odds)))
    return sorted(moved, key=lambda each: -abs(each.log_odds))[:_SHOWN]
