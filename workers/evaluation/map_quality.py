"""Quality of maps: accuracy, and divergence from full precision."""

import functools
import math
import time
from collections.abc import Mapping

import torch

from search_spaces.choice import FULL_PRECISION
from search_spaces.errors import AutotuneError
from workers import quality
from workers.backends.base import Deployed
from workers.progress import Report, silent
from workers.task import Split, Task
from workers.timing.device_lock import DeviceLock


class MapQuality:
    """Evaluates maps of a deployed model on the splits of its task; caches the outputs of full precision."""

    def __init__(self, task: Task, deployed: Deployed, lock: DeviceLock, report: Report = silent) -> None:
        """Evaluate maps of ``deployed``, which runs on the device of ``lock``; ``report`` gets every batch."""
        self._task, self._deployed, self._lock, self._report = task, deployed, lock, report
        self._reference: dict[Split, tuple[torch.Tensor, float]] = {}
        #: Seconds of all forward passes.
        self.forward_seconds = 0.0

    def of(self, choices: Mapping[str, str], split: Split) -> tuple[float, float]:
        """Return the accuracy and the mean divergence from full precision of a map on one split."""
        reference, full_accuracy = self._reference_of(split)
        self._deployed.apply(choices)
        if set(choices.values()) <= {FULL_PRECISION.name}:
            return full_accuracy, 0.0  # it repeats itself, which was checked before anything was measured
        outputs, accuracy = self._run(split)
        divergence = quality.divergence(outputs, reference, self._task.output_kind)
        return accuracy, float(divergence.mean())

    def held_out_accuracies(self, choices: Mapping[str, str]) -> tuple[float, float] | None:
        """Return the accuracy of a map and of full precision on held-out data; None if ``held_out_missing``."""
        if self.held_out_missing is not None:
            return None
        return self.of(choices, Split.HELD_OUT)[0], self.reference_accuracy(Split.HELD_OUT)

    @functools.cached_property
    def held_out_missing(self) -> str | None:
        """Why even full precision has no accuracy on held-out data, in one line; None if it has one.

        Tasks may lack held-out data, and the search never needs them.
        """
        try:
            accuracy = self.reference_accuracy(Split.HELD_OUT)
        except AutotuneError as error:
            return str(error)
        except Exception as error:  # the task's code may raise anything
            return " ".join(f"{type(error).__name__}: {error}".split())
        return None if math.isfinite(accuracy) else f"the accuracy of full precision on held-out data is {accuracy}"

    def reference_accuracy(self, split: Split) -> float:
        """Return the accuracy of full precision on one split."""
        return self._reference_of(split)[1]

    def _reference_of(self, split: Split) -> tuple[torch.Tensor, float]:
        """Return the outputs and accuracy of full precision on one split, computed once."""
        if split not in self._reference:
            self._deployed.apply({})
            self._reference[split] = self._run(split)
        return self._reference[split]

    def _run(self, split: Split) -> tuple[torch.Tensor, float]:
        """Return the outputs and the accuracy of the installed map."""
        with self._lock.shared():
            start = time.perf_counter()
            outputs, judged = quality.outputs_and_judged(self._task, self._deployed.model, split, self._report)
            self.forward_seconds += time.perf_counter() - start
        return outputs, quality.number(self._task.accuracy(judged, split))
