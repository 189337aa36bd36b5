"""What is believed of every map: additive models of divergence and latency, exact memory, accuracy by its link."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autotune.metrics.catalog import METRICS, Kind, percentiles_of, ratio_of
from autotune.planner.additive_model import AdditiveModel, Vector
from autotune.planner.effect_index import GUESS_SPREAD, EffectIndex, observe
from autotune.planner.knapsack import Costs, Maps
from autotune.planner.prior import Prior
from autotune.planner.quality_posterior import QualityPosterior
from autotune.planner.queueing_curve import QueueingCurve
from search_spaces.choice import Precision, choice_named
from workers.measurement import Split, Workload
from workers.timing.estimates import Figure

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


class Posterior:
    """Learns from measured maps and predicts all others."""

    def __init__(self, prior: Prior, choices: Sequence[Sequence[str]], metrics: Sequence[str] = ()) -> None:
        """Start from what is expected.

        Args:
            prior: of every choice of every group.
            choices: names of each group's choices.
            metrics: what will be asked for beside the metrics of the evaluation split and the forward pass.
        """
        self._expected = prior
        #: The splits whose quality, and the workloads whose latency, are traded off.
        self.splits, self.workloads = traded_off(metrics)
        #: Which choices each group has, shape ``(groups, choices)``.
        self.legal = np.isfinite(prior.memory_mib)
        self._effects = EffectIndex(self.legal, choices)
        # Of shifted data nothing is probed; how sensitive layers are beside each other carries over.
        splits = dict.fromkeys((Split.EVALUATION, *self.splits))
        self._qualities = {split: self._quality(split) for split in splits}
        workloads = dict.fromkeys((Workload.FORWARD, *self.workloads))
        self._latencies = {workload: self._latency(workload) for workload in workloads}
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
        for workload, latency in self._latencies.items():
            observe(latency, columns, figures, ratio_of(workload).name, _MISFIT, turns)
        for each in figures:
            for metric in (METRICS[name] for name in each if METRICS[name].queued):
                ratio = each[ratio_of(metric.workload).name].value
                self._queued.setdefault(metric.name, []).append((ratio, each[metric.name].value))

    def costs(
        self,
        generator: np.random.Generator | None = None,
        *,
        split: Split = Split.EVALUATION,
        workload: Workload = Workload.FORWARD,
    ) -> Costs:
        """Return divergence, latency and memory of every choice, shape ``(3, groups, choices)``.

        They are the expected ones, or drawn from the posterior if there is a ``generator``.
        """
        divergence, model = self._qualities[split].costs(generator), self._latencies[workload]
        latencies = model.mean if generator is None else model.draw(generator)
        return np.stack([divergence, self._effects.spread_out(latencies), self._expected.memory_mib])

    def change_prices(self, workload: Workload = Workload.FORWARD) -> list[float]:
        """Return what one change of precision more costs in a latency ratio, where there are few and many.

        Empty if changes are believed to cost next to nothing.
        """
        effect, pairs = float(self._latencies[workload].mean[-1]), max(1, len(self.legal) - 1)
        each = [effect * _TURNS_EXPONENT * share ** (_TURNS_EXPONENT - 1.0) / pairs for share in _TURNS]
        return each if effect > _LEAST_TURNS else []

    def predict(self, maps: Maps) -> dict[str, Vector]:
        """Return metric -> expected values of maps, shape ``(n,)`` each."""
        expected, groups = self._expected, np.arange(len(self.legal))
        columns, turns = self._effects.of(maps), self._turns(maps)
        memory = expected.memory_mib[groups, maps].sum(axis=1) + expected.fixed_memory_mib
        full = {name: figure.value for name, figure in self.full_precision.items()}
        predicted = {"weight_memory_mib": memory}
        for workload, latency in self._latencies.items():
            ratio = predicted[ratio_of(workload).name] = np.maximum(latency.predict(columns, turns), 1e-3)
            served = [metric.name for metric in percentiles_of(workload).values() if metric.name in full]
            predicted |= {name: ratio * full[name] for name in served}
            waiting = [metric.name for metric in percentiles_of(workload, queued=True).values() if metric.name in full]
            predicted |= {name: self._queue(name).predict(ratio) for name in waiting}
        for quality in self._qualities.values():
            predicted |= quality.predict(maps, self.full_precision)
        if "peak_memory_mib" in full:
            predicted["peak_memory_mib"] = memory + full["peak_memory_mib"] - full["weight_memory_mib"]
        return predicted

    def deviation(self, name: str, maps: Maps) -> Vector:
        """Return the standard deviation of a metric a constraint may limit, shape ``(n,)``."""
        metric = METRICS[name]
        if not metric.is_latency:
            return np.full(len(maps), self._qualities[metric.split].deviation(metric, self.full_precision))
        model, columns, turns = self._latencies[metric.workload], self._effects.of(maps), self._turns(maps)
        relative = model.deviation(columns, turns) + _TAIL_DEVIATION
        if metric.queued:
            return self._queue(name).deviation(np.maximum(model.predict(columns, turns), 1e-3), relative)
        return np.asarray(relative * (1.0 if metric.kind is Kind.LATENCY_RATIO else self.full_precision[name].value))

    def _queue(self, metric: str) -> QueueingCurve:
        return QueueingCurve([(1.0, self.full_precision[metric].value), *self._queued.get(metric, ())])

    def _quality(self, split: Split) -> QualityPosterior:
        expected = self._expected
        probed = expected.probed and split is Split.EVALUATION
        return QualityPosterior(
            self._effects, expected.divergence, expected.fixed_divergence, probed=probed, split=split
        )

    def _latency(self, workload: Workload) -> AdditiveModel:
        expected = self._expected
        # Reading a prompt is a forward pass. Decoding, which is most of a request, moves all weights for a token or a
        # few, whatever was probed.
        decodes = workload in (Workload.DECODE, Workload.REQUEST)
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


def traded_off(metrics: Sequence[str]) -> tuple[tuple[Split, ...], tuple[Workload, ...]]:
    """Return the splits whose quality, and the workloads whose latency, ``metrics`` are about; the plain ones if none.

    >>> traded_off(["decode_latency_p50_ms", "accuracy", "shifted_accuracy_drop"])
    ((<Split.EVALUATION: 'evaluation'>, <Split.SHIFTED: 'shifted'>), (<Workload.DECODE: 'decode'>,))
    >>> traded_off(["queued_latency_p95_ms"])
    ((<Split.EVALUATION: 'evaluation'>,), (<Workload.REQUEST: 'request'>,))
    """
    known = [METRICS[name] for name in metrics]
    splits = dict.fromkeys(metric.split for metric in known if metric.is_quality)
    workloads = dict.fromkeys(metric.workload for metric in known if metric.is_latency)
    return tuple(splits) or (Split.EVALUATION,), tuple(workloads) or (Workload.FORWARD,)
