"""The way of workers' steps to the driver while their methods still run: a small actor between them.

Nothing waits for the actor: workers send and forget, and the driver looks whether an answer has come. If it dies, Ray
starts it again, and only the steps sent meanwhile are lost.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from workers.progress import Report, Stage, Step

#: The stages of a worker, in order.
_ORDER = list(Stage)


class Reported(NamedTuple):
    """The latest step of a worker."""

    #: Number of the call that it belongs to.
    call: int
    step: Step
    #: Number of the report among those of the worker.
    number: int


class _Board:
    """Keeps the latest step of every worker."""

    def __init__(self) -> None:
        self._latest: dict[str, Reported] = {}

    def put(self, worker: str, call: int, step: Step) -> None:
        number = self._latest[worker].number + 1 if worker in self._latest else 0
        self._latest[worker] = Reported(call, step, number)

    def latest(self) -> dict[str, Reported]:
        return self._latest


#: Needs no CPUs, so that it starts on a busy cluster too.
_Actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)(_Board)


class StepBoard:
    """The driver's end: the latest steps of the workers that got a report from here."""

    def __init__(self) -> None:
        self._actor = _Actor.remote()
        self._asked: Any = None
        self._latest: dict[str, Reported] = {}

    def report_of(self, worker: str, call: int) -> Report:
        """Return what sends the steps of one call of a worker here; it is an argument of that call."""
        return _Sender(self._actor, worker, call)

    def latest(self) -> dict[str, Reported]:
        """Return worker -> its latest step, as of the last answer; this never waits."""
        with suppress(RayError):
            if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
                asked, self._asked = self._asked, None
                self._latest = ray.get(asked)
            if self._asked is None:
                self._asked = self._actor.latest.remote()
        return self._latest

    def furthest_behind(self, calls: Sequence[tuple[str, int]]) -> Step | None:
        """Return the latest step of the worker that is furthest behind; None if there is none to show.

        Args:
            calls: the workers, each with the number of its present call. A step of an earlier one says nothing.
        """
        latest = self.latest()
        found = [(number, latest[worker]) for worker, number in calls if worker in latest]
        steps = [reported.step for number, reported in found if reported.call == number]
        if len(calls) > 1:
            # While several workers measure, and wait for each other to do so, the number of trials says enough.
            steps = [step for step in steps if not step.stage.is_measuring and step.stage is not Stage.WAITING]
        return min(steps, key=lambda step: _ORDER.index(step.stage), default=None)

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)


class _Sender:
    """A worker's end."""

    def __init__(self, actor: Any, worker: str, call: int) -> None:
        self._actor, self._worker, self._call = actor, worker, call

    def __call__(self, step: Step) -> None:
        with suppress(RayError):
            self._actor.put.remote(self._worker, self._call, step)
