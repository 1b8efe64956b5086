"""Prometheus metrics. Labels come from purchases and our own words, never from a client's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from buyer.pool import Counts
from gateway.limits import METRICS_KEPT_MAX

__all__ = ["Metrics"]

_FIRST_BYTE_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

Labelled = TypeVar("Labelled", Counter, Histogram)

PoolCounts = Callable[[], Iterable[tuple[str, Counts]]]


class Metrics:
    """The gateway's metrics, in a registry of their own. `pool_counts` is asked at every scrape."""

    def __init__(self, pool_counts: PoolCounts) -> None:
        self._registry = CollectorRegistry()
        self.calls = Counter(
            "farebox_gateway_calls", "Paid calls by how they ended.", ["purchase", "outcome"], registry=self._registry
        )
        self.refusals = Counter(
            "farebox_gateway_refusals", "Requests answered without a payment.", ["code"], registry=self._registry
        )
        self.repeated = Counter(
            "farebox_gateway_repeated",
            "Repetitions of a request that were answered without a new payment.",
            ["how"],
            registry=self._registry,
        )
        self.spent = Counter(
            "farebox_gateway_spent_atomic", "Atomic units paid to sellers.", ["purchase"], registry=self._registry
        )
        self.no_receipt = Counter(
            "farebox_gateway_answers_without_receipt",
            "Answers for which the seller sent no settlement receipt.",
            ["purchase"],
            registry=self._registry,
        )
        self.first_byte = Histogram(
            "farebox_gateway_first_byte_seconds",
            "From the payment's departure to the answer's status line.",
            ["purchase"],
            buckets=_FIRST_BYTE_BUCKETS_S,
            registry=self._registry,
        )
        self.fallback = Counter(
            "farebox_gateway_fallback", "Calls answered by the fallback.", ["outcome"], registry=self._registry
        )
        self.in_flight = Gauge("farebox_gateway_in_flight", "Calls being answered now.", registry=self._registry)
        self._registry.register(_PoolCollector(pool_counts))
        self._at_hand: dict[tuple[object, ...], Any] = {}

    def of(self, metric: Labelled, *labels: str) -> Labelled:
        """Return one metric's child, as `labels` does, which checks the labels and takes a lock at every call."""
        child: Labelled | None = self._at_hand.get((metric, *labels))
        if child is None:
            if len(self._at_hand) >= METRICS_KEPT_MAX:
                self._at_hand.clear()
            child = self._at_hand[metric, *labels] = metric.labels(*labels)
        return child

    def text(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self._registry)


class _PoolCollector(Collector):
    def __init__(self, pool_counts: PoolCounts) -> None:
        self._pool_counts = pool_counts

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "farebox_pool_authorizations", "Signed authorizations by state.", labels=["purchase", "state"]
        )
        for name, counts in self._pool_counts():
            for state in ("ready", "claimed", "sent", "unknown", "spent", "expired", "cancelled"):
                family.add_metric([name, state], getattr(counts, state))
        yield family

    def describe(self) -> Iterable[Metric]:
        return []
