"""Computes response times under load, as in an open-loop load test of one server, from measured requests.

Requests arrive at random times (a Poisson process), wait in line, and are served one at a time. Lindley's recursion
gives the waits of a real load test from the times between arrivals and the service times (Lindley, The theory of
queues with a single server, 1952).
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from autotune.metrics.catalog import OVERLOADED_MS
from workers.measurement import LatencySamples, Samples
from workers.timing.estimates import CONFIDENCE, REFERENCE_PER_ROUND, Figure

#: Simulated arrivals; the first finds an idle server.
ARRIVALS = 10_000
#: Bootstrap resamples of the measured rounds.
_RESAMPLES = 100


def response_percentiles(
    latency: LatencySamples, percents: Sequence[int], *, drift: float, requests_per_second: float
) -> Mapping[int, Figure]:
    """Return percent -> percentile of response times in ms, including the wait, with a bootstrap interval.

    Whole rounds are resampled, because neighbouring samples share the state of the machine.

    Args:
        latency: measured requests.
        percents: the percentiles to compute.
        drift: factor on the measured milliseconds.
        requests_per_second: the mean arrival rate.
    """
    service_ms, rounds = latency.candidate_ms * drift, len(latency.reference_ms) // REFERENCE_PER_ROUND
    blocks = np.array_split(service_ms, rounds)
    picks = np.random.default_rng(0).integers(rounds, size=(_RESAMPLES, rounds))
    resampled = [np.concatenate([blocks[number] for number in pick]) for pick in picks]
    value, *others = (_percentiles(times, percents, requests_per_second) for times in (service_ms, *resampled))
    tail = 100.0 * (1.0 - CONFIDENCE) / 2.0
    low, high = np.percentile(others, [tail, 100.0 - tail], axis=0)
    return {
        percent: Figure(value=float(value[number]), low=float(low[number]), high=float(high[number]))
        for number, percent in enumerate(percents)
    }


def response_ms(service_ms: Samples, requests_per_second: float) -> Samples:
    """Return the response times of ``ARRIVALS`` requests in ms, in order of arrival.

    Arrival times and the ranks of the requests among ``service_ms`` are the same in every call, so all maps are
    compared under the same load.
    """
    gaps, ranks = _load()
    service = np.sort(service_ms)[(ranks * len(service_ms)).astype(np.intp)]
    # The wait is the remaining work of earlier requests: the height of a random walk above its minimum so far.
    steps = np.concatenate([[0.0], service[:-1] - gaps[1:] * 1e3 / requests_per_second]).cumsum()
    return np.asarray(steps - np.minimum.accumulate(steps) + service)


def _percentiles(service_ms: Samples, percents: Sequence[int], requests_per_second: float) -> Samples:
    """Return percentiles of response times, shape ``(percents,)``.

    The waits at an overloaded server grow for as long as the load lasts, so each percentile is ``OVERLOADED_MS``
    times the utilisation.
    """
    utilisation = requests_per_second * float(service_ms.mean()) / 1e3
    if utilisation >= 1.0:
        return np.full(len(percents), OVERLOADED_MS * utilisation)
    return np.percentile(response_ms(service_ms, requests_per_second), percents)


@functools.cache
def _load() -> tuple[Samples, Samples]:
    """Return the times between arrivals, with mean 1, and the rank of each request's service time, from 0 to 1."""
    generator = np.random.default_rng(0)
    return generator.exponential(size=ARRIVALS), generator.random(ARRIVALS)
