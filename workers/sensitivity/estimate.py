"""Estimate the sensitivity of every layer to every choice, by gradients if the outputs have any."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from workers.device import memory
from workers.model.prepared import PreparedModel
from workers.progress import Report, silent
from workers.sensitivity import gradient, local
from workers.sensitivity.parts import length_of, random_parts
from workers.sensitivity.progress import LayerCount
from workers.sensitivity.recording import Call, record
from workers.setup import Estimator
from workers.task import Batch, Task

#: Random vectors per sample, and minimum number of samples: 48 products in all, so that the
#: standard error of their mean square is about 20 %. Twice as many do not rank layers better. As many samples as fill
#: whole batches are used, because some samples diverge much more than others.
_VECTORS, _SAMPLES = 4, 12
#: Samples per pass: few, so that activations need little memory and the time of a pass is soon known.
_SAMPLES_AT_ONCE = 2

#: Maximum bytes of activations and gradients held at once; see ``estimate``.
RECORDED_BYTES = 1 << 30

#: Largest predicted divergence; larger values, and the infinity or nan of a layer that overflows, are capped to it.
MOST = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Predicted divergence of the model if one layer alone takes a choice."""

    #: (layer name, choice name) -> predicted divergence; 0 where the outputs do not depend on the layer.
    divergence: Mapping[tuple[str, str], float]
    estimator: Estimator
    #: Number of samples used.
    samples: int
    #: Whether more samples would have been used if there had been time.
    cut: bool = False


def estimate(
    task: Task,
    prepared: PreparedModel,
    choices: Mapping[str, Sequence[str]],
    batches: Sequence[Batch],
    *,
    most_bytes: int = RECORDED_BYTES,
    budget_s: float = math.inf,
    seed: int = 0,
    report: Report = silent,
) -> Sensitivity:
    """Return the sensitivities of a model, estimated on a few random samples of ``batches``.

    Full precision is installed when the call returns.

    Args:
        task: runs the model, and specifies the kind of its outputs.
        prepared: the model and its prepared layers.
        choices: layer name -> names of the choices to estimate, without full precision.
        batches: calibration data; never the data that the search is evaluated on.
        most_bytes: bound of the bytes of layer inputs, outputs and gradients held at once; if they exceed it, several
            passes record some of the layers each.
        budget_s: seconds after which no further pass is made; the first one is made in any case.
        seed: seed of the random vectors and of the choice of samples.
        report: gets every layer on every batch.
    """
    prepared.reset()
    whole = max((length_of(batch) or 1 for batch in batches), default=1)
    wanted = math.ceil(_SAMPLES / whole) * whole
    parts = random_parts(task, prepared.model, batches, _SAMPLES_AT_ONCE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    try:
        return _by_gradient(task, prepared, choices, parts, most_bytes, _Quota(wanted, budget_s), generator, report)
    except RuntimeError:  # the outputs have no gradient, or an operation on the way has none
        return _by_local_error(task, prepared, choices, parts, most_bytes, _Quota(wanted, budget_s), report)


class _Quota:
    """Decides whether an estimate is done: it has enough samples, or another pass would exceed its seconds."""

    def __init__(self, wanted: int, budget_s: float) -> None:
        #: Samples needed.
        self.wanted = wanted
        self._began_at = time.monotonic()
        self._ends_at = self._began_at + budget_s
        #: Samples used, and whether the seconds ended before these were enough.
        self.samples, self.cut = 0, False

    def is_met_after(self, samples: int) -> bool:
        """Count a pass over so many samples."""
        now_s = time.monotonic()
        took_s, self._began_at = now_s - self._began_at, now_s
        self.samples += samples
        self.cut = self.samples < self.wanted and now_s + took_s > self._ends_at
        return self.cut or self.samples >= self.wanted


def _by_gradient(
    task: Task,
    prepared: PreparedModel,
    choices: Mapping[str, Sequence[str]],
    batches: Sequence[Batch],
    most_bytes: int,
    quota: _Quota,
    generator: torch.Generator,
    report: Report,
) -> Sensitivity:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    progress = LayerCount(report, len(choices), samples=quota.wanted, most_batches=len(batches))
    for batch in batches:
        state, reached, count = generator.get_state(), False, 0
        for calls, outputs in _recorded(task, prepared, choices, batch, gradients=_VECTORS, most_bytes=most_bytes):
            progress.begin_batch(len(outputs))
            generator.set_state(state)  # every pass uses the same vectors
            squares = gradient.squared_products(
                calls,
                outputs,
                task.output_kind,
                prepared,
                choices,
                vectors=_VECTORS,
                generator=generator,
                done=progress.done,
            )
            for key, value in squares.items():
                sums[key] += value
            reached, count = reached or outputs.requires_grad, len(outputs)
            del calls, outputs  # the next pass needs their memory
        progress.end_batch()
        if not reached:
            raise RuntimeError("the outputs have no gradient")
        if quota.is_met_after(count):
            break
    divergence = {key: _bounded(value / (2.0 * _VECTORS * quota.samples)) for key, value in sums.items()}
    return Sensitivity(divergence=divergence, estimator=Estimator.GRADIENT, samples=quota.samples, cut=quota.cut)


def _by_local_error(
    task: Task,
    prepared: PreparedModel,
    choices: Mapping[str, Sequence[str]],
    batches: Sequence[Batch],
    most_bytes: int,
    quota: _Quota,
    report: Report,
) -> Sensitivity:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    progress = LayerCount(report, len(choices), samples=quota.wanted, most_batches=len(batches))
    used = []
    for batch in batches:
        count = 0
        for calls, outputs in _recorded(task, prepared, choices, batch, gradients=0, most_bytes=most_bytes):
            count = len(outputs)
            progress.begin_batch(count)
            for key, value in local.relative_errors(calls, prepared, choices, done=progress.done).items():
                sums[key] += value * count
            del calls, outputs
        progress.end_batch()
        used.append(batch)
        if quota.is_met_after(count):
            break
    means = {key: value / quota.samples for key, value in sums.items()}
    scaled = local.scaled_to_uniform(means, task, prepared, used)
    divergence = {key: _bounded(value) for key, value in scaled.items()}
    return Sensitivity(divergence=divergence, estimator=Estimator.LOCAL, samples=quota.samples, cut=quota.cut)


def _recorded(
    task: Task, prepared: PreparedModel, layers: Iterable[str], batch: Batch, *, gradients: int, most_bytes: int
) -> Iterator[tuple[list[Call], torch.Tensor]]:
    """Yield the layers' calls with the outputs, from as many passes over the batch as the memory bound requires."""
    left = list(layers)
    while True:
        recording, outputs = record(task, prepared.model, left, batch, gradients=gradients, most_bytes=most_bytes)
        left = list(recording.left)
        yield recording.calls, outputs
        if not left:
            return
        del recording, outputs
        memory.release()


def _bounded(value: float) -> float:
    return value if value <= MOST else MOST  # comparisons with nan are false
