"""Response times under load: what an open-loop load test of one server sees, worked out from measured requests.

Requests come at random moments (a Poisson process), wait in line, and are served one at a time. A load test would
wait for as many arrivals as it makes; Lindley's recursion gives the same waits from the times between arrivals and the
times that requests take (Lindley, The theory of queues with a single server, 1952).
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from autotune.metrics.catalog import OVERLOADED_MS
from workers.measurement import LatencySamples, Samples
from workers.timing.estimates import CONFIDENCE, REFERENCE_PER_ROUND, Figure

#: Requests that arrive, the first one at an idle server.
ARRIVALS = 10_000
#: How often the measured rounds are resampled for an interval.
_RESAMPLES = 100


def response_percentiles(
    latency: LatencySamples, percents: Sequence[int], *, drift: float, requests_per_second: float
) -> Mapping[int, Figure]:
    """Return percent -> that percentile of response times in ms, the wait included, with a bootstrap interval.

    Whole rounds are resampled, because neighbouring samples share the machine's momentary state.

    Args:
        latency: of requests.
        percents: the percentiles wanted.
        drift: what the measured milliseconds are multiplied by.
        requests_per_second: how fast requests come, on average.
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
    """Return the response times of ``ARRIVALS`` requests in ms, in the order of their arrival.

    Arrivals and the ranks of the requests among ``service_ms`` are the same in every call, so that two maps are
    compared under one load.
    """
    gaps, ranks = _load()
    service = np.sort(service_ms)[(ranks * len(service_ms)).astype(np.intp)]
    # A request waits for what those before it left undone: the highest climb of a random walk to where it is.
    steps = np.concatenate([[0.0], service[:-1] - gaps[1:] * 1e3 / requests_per_second]).cumsum()
    return np.asarray(steps - np.minimum.accumulate(steps) + service)


def _percentiles(service_ms: Samples, percents: Sequence[int], requests_per_second: float) -> Samples:
    """Return percentiles of response times, shape ``(percents,)``.

    Of a server that is asked for more than it can do the wait grows for as long as the load lasts. It is
    ``OVERLOADED_MS``, times how much more it is asked for.
    """
    utilisation = requests_per_second * float(service_ms.mean()) / 1e3
    if utilisation >= 1.0:
        return np.full(len(percents), OVERLOADED_MS * utilisation)
    return np.percentile(response_ms(service_ms, requests_per_second), percents)


@functools.cache
def _load() -> tuple[Samples, Samples]:
    """Return the times between arrivals, 1 on average, and the rank of each request's time from 0 to 1."""
    generator = np.random.default_rng(0)
    return generator.exponential(size=ARRIVALS), generator.random(ARRIVALS)
