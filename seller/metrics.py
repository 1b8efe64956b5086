"""What a seller counts in this process. Label values come from configuration and error tree, never from clients."""

from __future__ import annotations

from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from seller.statement import Sums

__all__ = ["Metrics"]


class Metrics:
    """Counters of one seller in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.refusals: Tally[str] = Tally()
        self._requests = Counter(
            "farebox_seller_requests", "Requests to priced routes by outcome", ["route", "outcome"],
            registry=self._registry,
        )  # fmt: skip
        # As many as there are routes and outcomes; to find them by label costs more than to count.
        self._served: dict[tuple[str, str], Counter] = {}
        self._refused = Counter(
            "farebox_seller_refusals", "Payments and requests refused, by cause", ["code"], registry=self._registry
        )
        self._claim_seconds = Histogram(
            "farebox_seller_claim_seconds", "Time to verify and reserve a payment", registry=self._registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0),
        )  # fmt: skip
        self._money = Gauge(
            "farebox_seller_money_atomic", "Sums of the ledger in atomic units", ["book"], registry=self._registry
        )
        self._payments = Gauge(
            "farebox_seller_payments", "Payments by the state of their money", ["money"], registry=self._registry
        )

    def served(self, route: str, outcome: str) -> None:
        """Count a request that was answered: `unpaid`, `paid`, `credit`, `replayed` or `not_charged`."""
        found = self._served.get((route, outcome))
        if found is None:
            found = self._served[route, outcome] = self._requests.labels(route, outcome)
        found.inc()

    def refused(self, route: str, code: str) -> None:
        """Count a request refused with an error's `code`."""
        self._requests.labels(route, "refused").inc()
        self._refused.labels(code).inc()
        self.refusals[code] += 1

    def claimed(self, seconds: float) -> None:
        """Note how long a claim took."""
        self._claim_seconds.observe(seconds)

    def expose(self, sums: Sums) -> bytes:
        """Return everything in Prometheus' text format."""
        self._money.labels("earned").set(sums.earned_atomic)
        self._money.labels("outstanding").set(sums.outstanding_atomic)
        self._money.labels("exposure").set(sums.exposure_atomic)
        self._money.labels("lost").set(sums.lost_atomic)
        for money, count in sums.payments.items():
            self._payments.labels(money).set(count)
        return generate_latest(self._registry)
