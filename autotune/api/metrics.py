"""Metrics for Prometheus: this process's requests, and the database's counts of jobs and trials."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from autotune.jobs.records import JobState, TrialState
from autotune.store.base import Store

# Counters are created when the process starts, and Prometheus detects restarts anyway.
disable_created_metrics()  # type: ignore[no-untyped-call]

#: Other methods are counted as "other", because callers without a token could invent any number of them.
_METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS")


class Metrics:
    """The metrics of one API process."""

    def __init__(self, store: Store) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_StoreCollector(store))
        self._requests = Counter(
            "autotune_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "autotune_request_seconds", "Seconds until an answer began.", ("route",), registry=self._registry
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method if method in _METHODS else "other", route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _StoreCollector(Collector):
    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[Metric]:
        """Return no descriptions, so that registering does not query the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics over all jobs."""
        found = self._store.statistics()
        jobs = GaugeMetricFamily("autotune_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            jobs.add_metric([state.value], found.jobs.get(state, 0))
        trials = CounterMetricFamily("autotune_trials", "Recorded trials by outcome.", labels=["outcome"])
        for outcome in TrialState:
            trials.add_metric([outcome.value], found.trials.get(outcome, 0))
        yield from (jobs, trials)
        yield GaugeMetricFamily(
            "autotune_queue_age_seconds", "Age of the oldest job in the queue.", value=found.oldest_wait_s
        )
        yield CounterMetricFamily(
            "autotune_lease_takeovers", "Jobs taken over from a lost driver.", value=found.takeovers
        )
