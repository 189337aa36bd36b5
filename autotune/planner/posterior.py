"""The posterior of every map: additive models of divergence and latency, exact memory, accuracy from divergence."""

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

#: Relative deviation of probed latencies from their prior: of each effect, and shared by all of one choice.
_SPREAD = (0.15, 0.25)
#: Relative error of sums of effects against measured latency ratios.
_MISFIT = 0.004
#: Mean and standard deviation of the latency ratio added to a map whose neighbouring groups all differ in precision.
#: Kernels of several precisions in one pass slow each other down. More changes cost more, but the first ones cost
#: most: on MiniLM, 1, 5 and 35 changes out of 35 cost 0.02, 0.04 and 0.06.
_CHANGES_PRIOR, _CHANGES_EXPONENT = (0.03, 0.05), 0.4
#: Shares of neighbouring pairs with a change of precision at which the price of one more change is computed.
_CHANGES = (0.005, 0.03, 0.3)
#: Changes of precision have no price below this effect, which is too small to measure.
_LEAST_CHANGES = 0.002
#: Relative deviation of latency percentiles from the prediction by the ratio of medians.
_TAIL_DEVIATION = 0.01


class Posterior:
    """Learns from measured maps and predicts all others."""

    def __init__(self, prior: Prior, choices: Sequence[Sequence[str]], metrics: Sequence[str] = ()) -> None:
        """Start from the prior.

        Args:
            prior: of every choice of every group.
            choices: names of each group's choices.
            metrics: metrics to predict in addition to those of the evaluation split and the forward pass.
        """
        self._expected = prior
        #: The splits whose quality and the workloads whose latency are traded off.
        self.splits, self.workloads = traded_off(metrics)
        #: Whether each group has each choice, shape ``(groups, choices)``.
        self.legal = np.isfinite(prior.memory_mib)
        self._effects = EffectIndex(self.legal, choices)
        # Shifted data is not probed, but the relative sensitivities of the layers carry over.
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
        #: Metric under load -> pairs of a latency ratio of requests and the response time measured with it.
        self._queued: dict[str, list[tuple[float, float]]] = {}
        #: Figures of full precision on the backend of the maps; must be set before anything is observed or predicted.
        #: Its latency ratios are not 1 if the job compares everything with another backend.
        self.full_precision: Mapping[str, Figure] = {}

    def observe(self, maps: Maps, figures: Sequence[Mapping[str, Figure]]) -> None:
        """Learn from measured maps, shape ``(n, groups)``; figures may be missing."""
        figures = [self._on_one_backend(each) for each in figures]
        for quality in self._qualities.values():
            quality.observe(maps, figures)
        columns, changes = self._effects.of(maps), self._changes(maps)
        for workload, latency in self._latencies.items():
            observe(latency, columns, figures, ratio_of(workload).name, _MISFIT, changes)
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

        Divergences and latencies are the expected ones, or drawn from the posterior with a ``generator``.
        """
        divergence, model = self._qualities[split].costs(generator), self._latencies[workload]
        latencies = model.mean if generator is None else model.draw(generator)
        return np.stack([divergence, self._effects.spread_out(latencies), self._expected.memory_mib])

    def change_prices(self, workload: Workload = Workload.FORWARD) -> list[float]:
        """Return the cost of one more change of precision, as a latency ratio, for few, some and many changes.

        Empty if the expected cost of changes is negligible.
        """
        effect, pairs = float(self._latencies[workload].mean[-1]), max(1, len(self.legal) - 1)
        each = [effect * _CHANGES_EXPONENT * share ** (_CHANGES_EXPONENT - 1.0) / pairs for share in _CHANGES]
        return each if effect > _LEAST_CHANGES else []

    def predict(self, maps: Maps) -> dict[str, Vector]:
        """Return metric -> expected values of maps, shape ``(n,)`` each."""
        expected, groups = self._expected, np.arange(len(self.legal))
        columns, changes = self._effects.of(maps), self._changes(maps)
        memory = expected.memory_mib[groups, maps].sum(axis=1) + expected.fixed_memory_mib
        full = {name: figure.value for name, figure in self.full_precision.items()}
        predicted = {"weight_memory_mib": memory}
        for workload, latency in self._latencies.items():
            ratio = np.maximum(latency.predict(columns, changes), 1e-3)
            predicted[ratio_of(workload).name] = ratio * self._base(workload)
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
        if metric.is_quality:
            return self._qualities[metric.split].deviation(metric, maps, self.full_precision)
        if not metric.is_latency:
            return np.zeros(len(maps))
        model, columns, changes = self._latencies[metric.workload], self._effects.of(maps), self._changes(maps)
        relative = model.deviation(columns, changes) + _TAIL_DEVIATION
        if metric.queued:
            return self._queue(name).deviation(np.maximum(model.predict(columns, changes), 1e-3), relative)
        base = self._base(metric.workload) if metric.kind is Kind.LATENCY_RATIO else self.full_precision[name].value
        return np.asarray(relative * base)

    def _base(self, workload: Workload) -> float:
        """Return the latency ratio of full precision, 1 on the backend that everything is compared with."""
        ratio = self.full_precision.get(ratio_of(workload).name)
        return 1.0 if ratio is None else ratio.value

    def _on_one_backend(self, figures: Mapping[str, Figure]) -> dict[str, Figure]:
        """Return figures whose latency ratios are relative to full precision on the maps' own backend."""
        bases = {ratio_of(workload).name: self._base(workload) for workload in Workload}
        own = {name: figures[name].scaled(1.0 / base) for name, base in bases.items() if name in figures}
        return {**figures, **own}

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
        # Prefill is a forward pass, which the probes timed. Decoding, the largest part of a request, reads all weights
        # for one token or a few, so the probes say nothing about it.
        decodes = workload in (Workload.DECODE, Workload.REQUEST)
        prior = _by_bytes(expected.memory_mib, self.legal) if decodes else expected.latency
        spread = _SPREAD if expected.probed and not decodes else GUESS_SPREAD
        fixed = 0.0 if decodes else expected.fixed_latency
        return self._effects.model(prior, spread, certain=1.0, fixed=fixed, extra=_CHANGES_PRIOR)

    def _changes(self, maps: Maps) -> Costs:
        """Return how often the precision changes between neighbouring groups, from 0 to 1; shape ``(n, 1)``."""
        precisions = self.precisions[np.arange(len(self.legal)), maps]
        changes = (np.diff(precisions, axis=1) != 0).sum(axis=1) / max(1, len(self.legal) - 1)
        return np.asarray(changes[:, None] ** _CHANGES_EXPONENT)


def _by_bytes(memory_mib: Costs, legal: npt.NDArray[np.bool_]) -> Costs:
    """Return a guess: half of the time is proportional to the bytes of the layers' weights."""
    most = np.where(legal, memory_mib, 0.0).max(axis=1, keepdims=True)
    return np.asarray(0.5 * (memory_mib - most) / (most.sum() or 1.0))


def traded_off(metrics: Sequence[str]) -> tuple[tuple[Split, ...], tuple[Workload, ...]]:
    """Return the splits and the workloads of ``metrics``; the defaults are evaluation and the forward pass.

    >>> traded_off(["decode_latency_p50_ms", "accuracy", "shifted_accuracy_drop"])
    ((<Split.EVALUATION: 'evaluation'>, <Split.SHIFTED: 'shifted'>), (<Workload.DECODE: 'decode'>,))
    >>> traded_off(["queued_latency_p95_ms"])
    ((<Split.EVALUATION: 'evaluation'>,), (<Workload.REQUEST: 'request'>,))
    """
    known = [METRICS[name] for name in metrics]
    splits = dict.fromkeys(metric.split for metric in known if metric.is_quality)
    workloads = dict.fromkeys(metric.workload for metric in known if metric.is_latency)
    return tuple(splits) or (Split.EVALUATION,), tuple(workloads) or (Workload.FORWARD,)
