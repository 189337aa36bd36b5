"""What is believed of every map: additive models of divergence and latency, exact memory, accuracy by its link."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autotune.metrics.catalog import METRICS, QUEUED, SHIFTED, Figure, latency_behind, prefix_of
from autotune.planner.additive_model import AdditiveModel, Vector
from autotune.planner.effect_index import GUESS_SPREAD, Effects, observe
from autotune.planner.knapsack import Costs, Maps
from autotune.planner.prior import Expectations
from autotune.planner.quality_posterior import QualityBeliefs
from autotune.planner.queueing_curve import QueueLink
from search_spaces.choice import Precision, choice_named
from workers.measurement import Workload

#: Spread of probed latencies around their prior: each by itself, and all of one choice together.
_SPREAD = (0.15, 0.25)
#: How far sums of effects miss measured latency ratios, relative.
_MISFIT = 0.004
#: Mean and standard deviation of what a map whose neighbouring groups all differ in precision loses in latency ratio.
#: Kernels of several precisions in one pass slow each other down. The more often they take turns, the more,
#: but the first turns cost most: on MiniLM, 1, 5 and 35 of 35 turns cost 0.02, 0.04 and 0.06.
_TURNS_PRIOR, _TURNS_EXPONENT = (0.03, 0.05), 0.4
#: Shares of groups between which the precision changes at which the price of one change more is worked out.
_TURNS = (0.005, 0.03, 0.3)
#: Less than measurements tell if all neighbours differ.
_LEAST_TURNS = 0.002
#: Relative deviation of latency percentiles from what the ratio of medians says.
_TAIL_DEVIATION = 0.01


class Beliefs:
    """Learns from measured maps and predicts all others."""

    def __init__(
        self, expectations: Expectations, choices: Sequence[Sequence[str]], metrics: Sequence[str] = ()
    ) -> None:
        """Start from what is expected.

        Args:
            expectations: of every choice of every group.
            choices: names of each group's choices.
            metrics: what will be asked for beside the metrics of the evaluation split and the forward pass.
        """
        self._expected = expectations
        #: Beginnings of the names of the metrics of quality and of latency that are predicted; see ``kinds``.
        self.qualities, self.latencies = kinds(metrics)
        #: Which choices each group has, shape ``(groups, choices)``.
        self.legal = np.isfinite(expectations.memory_mib)
        self._effects = Effects(self.legal, choices)
        # Of shifted data nothing is probed; how sensitive layers are beside each other carries over.
        self._qualities = {prefix: self._quality(prefix) for prefix in dict.fromkeys(("", *self.qualities))}
        self._latencies = {prefix: self._latency(prefix) for prefix in dict.fromkeys(("", *self.latencies))}
        precisions = [
            [list(Precision).index(choice_named(name).precision) for name in of_group] for of_group in choices
        ]
        #: Number of the precision of each choice, shape ``(groups, choices)``.
        self.precisions = np.zeros(self.legal.shape, dtype=np.intp)
        self.precisions[self.legal] = [precision for of_group in precisions for precision in of_group]
        #: Metric of a load -> ratios of requests' latencies and what was measured with them.
        self._queued: dict[str, list[tuple[float, float]]] = {}
        #: Figures that everything is relative to; to be set before anything is predicted.
        self.full_precision: Mapping[str, Figure] = {}

    def observe(self, maps: Maps, figures: Sequence[Mapping[str, Figure]]) -> None:
        """Learn what was measured of maps, shape ``(n, groups)``; figures may be missing."""
        for quality in self._qualities.values():
            quality.observe(maps, figures)
        columns, turns = self._effects.of(maps), self._turns(maps)
        for prefix, latency in self._latencies.items():
            observe(latency, columns, figures, f"{prefix}latency_ratio", _MISFIT, turns)
        ratio = f"{prefix_of(Workload.REQUEST)}latency_ratio"
        for each in figures:
            for name in (name for name in each if name.startswith(QUEUED)):
                self._queued.setdefault(name, []).append((each[ratio].value, each[name].value))

    def costs(self, generator: np.random.Generator | None = None, *, quality: str = "", latency: str = "") -> Costs:
        """Return divergence, latency and memory of every choice, shape ``(3, groups, choices)``.

        They are the expected ones, or drawn from the beliefs if there is a ``generator``. ``quality`` and
        ``latency`` are how the names of the wanted metrics begin.
        """
        divergence, model = self._qualities[quality].costs(generator), self._latencies[latency]
        latencies = model.mean if generator is None else model.draw(generator)
        return np.stack([divergence, self._effects.spread_out(latencies), self._expected.memory_mib])

    def change_prices(self, latency: str = "") -> list[float]:
        """Return what one change of precision more costs in a latency ratio, where there are few and many.

        Empty if changes are believed to cost next to nothing.
        """
        effect, pairs = float(self._latencies[latency].mean[-1]), max(1, len(self.legal) - 1)
        each = [effect * _TURNS_EXPONENT * share ** (_TURNS_EXPONENT - 1.0) / pairs for share in _TURNS]
        return each if effect > _LEAST_TURNS else []

    def predict(self, maps: Maps) -> dict[str, Vector]:
        """Return metric -> expected values of maps, shape ``(n,)`` each."""
        expected, groups = self._expected, np.arange(len(self.legal))
        columns, turns = self._effects.of(maps), self._turns(maps)
        memory = expected.memory_mib[groups, maps].sum(axis=1) + expected.fixed_memory_mib
        full = {name: figure.value for name, figure in self.full_precision.items()}
        predicted = {"weight_memory_mib": memory}
        for prefix, latency in self._latencies.items():
            ratio = predicted[f"{prefix}latency_ratio"] = np.maximum(latency.predict(columns, turns), 1e-3)
            known = [name for name in METRICS if name.startswith(f"{prefix}latency_p") and name in full]
            predicted |= {name: ratio * full[name] for name in known}
            if prefix == prefix_of(Workload.REQUEST):
                predicted |= {name: self._queue(name).predict(ratio) for name in full if name.startswith(QUEUED)}
        for quality in self._qualities.values():
            predicted |= quality.predict(maps, self.full_precision)
        if "peak_memory_mib" in full:
            predicted["peak_memory_mib"] = memory + full["peak_memory_mib"] - full["weight_memory_mib"]
        return predicted

    def deviation(self, metric: str, maps: Maps) -> Vector:
        """Return the standard deviation of a metric a constraint may limit, shape ``(n,)``."""
        _, is_latency, of = metric.partition("latency")
        if is_latency:
            model, columns, turns = self._latencies[latency_behind(metric)], self._effects.of(maps), self._turns(maps)
            relative = model.deviation(columns, turns) + _TAIL_DEVIATION
            if metric.startswith(QUEUED):
                return self._queue(metric).deviation(np.maximum(model.predict(columns, turns), 1e-3), relative)
            return np.asarray(relative * (self.full_precision[metric].value if of != "_ratio" else 1.0))
        quality = self._qualities[SHIFTED if metric.startswith(SHIFTED) else ""]
        return np.full(len(maps), quality.deviation(metric, self.full_precision))

    def _queue(self, metric: str) -> QueueLink:
        return QueueLink([(1.0, self.full_precision[metric].value), *self._queued.get(metric, ())])

    def _quality(self, prefix: str) -> QualityBeliefs:
        expected = self._expected
        probed = expected.probed and not prefix
        return QualityBeliefs(
            self._effects, expected.divergence, expected.fixed_divergence, probed=probed, prefix=prefix
        )

    def _latency(self, prefix: str) -> AdditiveModel:
        expected = self._expected
        # Reading a prompt is a forward pass. Decoding, which is most of a request, moves all weights for a token or a
        # few, whatever was probed.
        decodes = prefix in (prefix_of(Workload.DECODE), prefix_of(Workload.REQUEST))
        prior = _by_bytes(expected.memory_mib, self.legal) if decodes else expected.latency
        spread = _SPREAD if expected.probed and not decodes else GUESS_SPREAD
        fixed = 0.0 if decodes else expected.fixed_latency
        return self._effects.model(prior, spread, certain=1.0, fixed=fixed, turns=_TURNS_PRIOR)

    def _turns(self, maps: Maps) -> Costs:
        """Return how much neighbouring groups of maps differ in precision, from 0 to 1; shape ``(n, 1)``."""
        precisions = self.precisions[np.arange(len(self.legal)), maps]
        turns = (np.diff(precisions, axis=1) != 0).sum(axis=1) / max(1, len(self.legal) - 1)
        return np.asarray(turns[:, None] ** _TURNS_EXPONENT)


def _by_bytes(memory_mib: Costs, legal: npt.NDArray[np.bool_]) -> Costs:
    """Return the guess that half of the time goes with the bytes of the layers' weights."""
    most = np.where(legal, memory_mib, 0.0).max(axis=1, keepdims=True)
    return np.asarray(0.5 * (memory_mib - most) / (most.sum() or 1.0))


def kinds(metrics: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return how the names of the quality metrics and of the latencies among ``metrics`` begin; plain ones if none.

    >>> kinds(["decode_latency_p50_ms", "accuracy", "shifted_accuracy_drop"])
    (('', 'shifted_'), ('decode_',))
    >>> kinds(["queued_latency_p95_ms"])
    (('',), ('request_',))
    """
    qualities = [SHIFTED if name.startswith(SHIFTED) else "" for name in metrics if "accuracy" in name or "div" in name]
    latencies = [latency_behind(name) for name in metrics if "latency" in name]
    return tuple(dict.fromkeys(qualities)) or ("",), tuple(dict.fromkeys(latencies)) or ("",)
