"""Passes on what a job does: to its listener, and to whoever records it for other processes."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from autotune.jobs.progress import Listener, Pace, Progress, stage_of
from autotune.jobs.records import JobStage
from workers.progress import Stage, Step


class Stages:
    """The listener of a driver, and the end of the workers' reports."""

    def __init__(self, listener: Listener, record: Callable[[JobStage], object] = lambda _: None) -> None:
        """Pass stages, steps and trials on to ``listener``, and the current stage to ``record``."""
        self._listener, self._record = listener, record
        self._pace = Pace()
        #: What the driver does, as it says, with its trials once there are any.
        self._driver = JobStage(name="")
        self._has_trials = False
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = time.monotonic()

    def stage(self, text: str) -> None:
        """Pass on the start of a stage; trials are counted on over all stages."""
        now_s = time.monotonic()
        self._seconds[self._driver.name] += now_s - self._since
        self._since = now_s
        self._driver = replace(self._driver, name=text)
        self._record(self._driver)
        self._listener.stage(text)

    def time_spent(self) -> str:
        """Return the seconds of each stage that has ended, in words."""
        spent = [f"{name.lower()} {seconds:.0f} s" for name, seconds in self._seconds.items() if name]
        return f"Time: {', '.join(spent)}"

    def step(self, stage: JobStage) -> None:
        """Pass on a step."""
        self._record(stage)
        self._listener.step(stage)

    def trial(self, progress: Progress) -> None:
        """Pass on a trial."""
        self._has_trials = True
        self._driver = JobStage(
            name=self._driver.name, done=progress.done, total=progress.budget, remaining_s=progress.remaining_s
        )
        self._record(self._driver)
        self._listener.trial(progress)

    def report(self, step: Step) -> None:
        """Pass on a worker's step: as a stage of its own, or as a detail of what the driver does with its maps."""
        remaining_s = self._pace.remaining_s(step)
        if step.stage is Stage.WAITING:
            self.step(replace(stage_of(step), remaining_s=self._driver.remaining_s))
        elif step.stage.is_measuring:
            count = "" if step.total is None else f" {step.done}/{step.total}"
            detail = step.stage.value.removeprefix("Measuring ").lower() + count
            left_s = self._driver.remaining_s if self._has_trials else remaining_s
            self.step(replace(self._driver, detail=detail, remaining_s=left_s))
        else:
            self.step(stage_of(step, remaining_s))
