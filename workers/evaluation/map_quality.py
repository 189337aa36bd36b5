"""Quality of maps: accuracy, and divergence from full precision."""

import functools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from search_spaces.choice import FULL_PRECISION
from search_spaces.errors import AutotuneError
from workers import quality
from workers.backends.base import Deployed
from workers.progress import Report, silent
from workers.task import Split, Task
from workers.timing.device_lock import DeviceLock


class MapQuality:
    """Evaluates maps of a deployed model on the splits of its task.

    It caches the accuracy of full precision, and its outputs where maps are compared with them.
    """

    def __init__(
        self,
        task: Task,
        deployed: Deployed,
        lock: DeviceLock,
        report: Report = silent,
        *,
        reference: "MapQuality | None" = None,
    ) -> None:
        """Evaluate maps of a deployed model.

        Args:
            task: the model's task.
            deployed: the model.
            lock: the lock of the device that the model runs on.
            report: gets every batch.
            reference: the same model on the backend whose full precision maps are compared with; None is ``deployed``.
        """
        self._task, self._deployed, self._lock, self._report = task, deployed, lock, report
        self._reference = reference or self
        self._outputs: dict[Split, torch.Tensor] = {}
        self._accuracies: dict[Split, float] = {}
        #: Seconds of all forward passes.
        self.forward_seconds = 0.0

    def of(self, choices: Mapping[str, str], split: Split) -> tuple[float, float]:
        """Return the accuracy and the mean divergence from full precision of a map on one split."""
        reference, full_accuracy = self._reference._outputs_of(split)
        self._deployed.apply(choices)
        if self._is_reference(choices):
            return full_accuracy, 0.0  # it repeats itself, which was checked before anything was measured
        with self._passing() as passing:
            diverged, judged = quality.divergence_and_judged(*passing, split, reference, self._report)
        return self._accuracy(judged, split), float(diverged.mean())

    def held_out_accuracies(self, choices: Mapping[str, str]) -> tuple[float, float] | None:
        """Return the accuracy of a map and of full precision on held-out data; None if ``held_out_missing``."""
        if self.held_out_missing is not None:
            return None
        full_accuracy = self.reference_accuracy(Split.HELD_OUT)
        self._deployed.apply(choices)
        return full_accuracy if self._is_reference(choices) else self._judge(Split.HELD_OUT), full_accuracy

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
        """Return the accuracy of full precision on one split, computed once."""
        if self._reference is not self:
            return self._reference.reference_accuracy(split)
        if split not in self._accuracies:
            self._deployed.apply({})
            self._accuracies[split] = self._judge(split)
        return self._accuracies[split]

    def _outputs_of(self, split: Split) -> tuple[torch.Tensor, float]:
        """Return the outputs and accuracy of full precision on one split, computed once."""
        if split not in self._outputs:
            self._deployed.apply({})
            with self._passing() as passing:
                outputs, judged = quality.outputs_and_judged(*passing, split, self._report)
            self._outputs[split], self._accuracies[split] = outputs, self._accuracy(judged, split)
        return self._outputs[split], self._accuracies[split]

    def _judge(self, split: Split) -> float:
        """Return the accuracy of the installed map."""
        with self._passing() as passing:
            judged = quality.judged(*passing, split, self._report)
        return self._accuracy(judged, split)

    def _accuracy(self, judged: torch.Tensor, split: Split) -> float:
        return quality.number(self._task.accuracy(judged, split))

    def _is_reference(self, choices: Mapping[str, str]) -> bool:
        return self._reference is self and set(choices.values()) <= {FULL_PRECISION.name}

    @contextmanager
    def _passing(self) -> Iterator[tuple[Task, nn.Module]]:
        """Count the seconds of forward passes in this context, which no timing disturbs."""
        with self._lock.shared():
            start = time.perf_counter()
            yield self._task, self._deployed.model
            self.forward_seconds += time.perf_counter() - start
