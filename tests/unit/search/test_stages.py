"""Progress of a job, as its listener and other processes see it."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from autotune.jobs import progress
from autotune.jobs.progress import Progress, Silent
from autotune.jobs.records import JobStage
from autotune.search import stages as stages_of_a_job
from autotune.search.stages import Stages
from workers.progress import Stage, Step

PROGRESS = Progress(done=3, budget=9, elapsed_s=1.0, remaining_s=60.0, best=None, front_size=0)


class Steps(Silent):
    """Keeps the steps it is told."""

    def __init__(self) -> None:
        self.seen: list[JobStage] = []

    def step(self, stage: JobStage) -> None:
        self.seen.append(stage)


def test_steps_before_maps_are_measured_are_stages_of_their_own() -> None:
    listener, recorded = Steps(), list[JobStage]()
    stages = Stages(listener, recorded.append)
    stages.stage("Starting workers")
    stages.report(Step(stage=Stage.CALIBRATING, done=3, total=16))
    assert listener.seen == [JobStage(name="Calibrating", done=3, total=16)]
    assert recorded == [JobStage(name="Starting workers"), *listener.seen]


def test_steps_of_a_measurement_are_details_of_what_the_driver_does() -> None:
    recorded: list[JobStage] = []
    stages = Stages(Silent(), recorded.append)
    stages.stage("Measuring full precision")
    stages.report(Step(stage=Stage.ACCURACY, done=2, total=4))
    assert recorded[-1] == JobStage(name="Measuring full precision", detail="accuracy 2/4")
    stages.report(Step(stage=Stage.GENERATING))
    assert recorded[-1].detail == "generating answers"


def test_while_searching_trials_are_counted_and_the_time_left_is_that_of_the_search() -> None:
    recorded: list[JobStage] = []
    stages = Stages(Silent(), recorded.append)
    stages.stage("Searching")
    stages.trial(PROGRESS)
    assert recorded[-1] == JobStage(name="Searching", done=3, total=9, remaining_s=60.0)
    stages.report(Step(stage=Stage.LATENCY, done=1, total=2))
    stages.report(Step(stage=Stage.LATENCY, done=2, total=2))
    assert recorded[-1] == JobStage(name="Searching", done=3, total=9, detail="latency 2/2", remaining_s=60.0)
    stages.report(Step(stage=Stage.WAITING, detail="process 7 measures there"))
    waiting = "Waiting for the device: process 7 measures there"
    assert recorded[-1] == JobStage(name=waiting, remaining_s=60.0)
    stages.stage("Measuring the best maps again")
    assert recorded[-1] == JobStage(name="Measuring the best maps again", done=3, total=9, remaining_s=60.0)


@pytest.fixture
def watch(stop_clock: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return stop_clock(stages_of_a_job, progress)


def test_time_is_added_up_by_stage(watch: SimpleNamespace) -> None:
    stages = Stages(Silent())
    watch.now_s += 5.0  # before the first stage
    for name, seconds in (("Starting workers", 12.0), ("Searching", 30.0), ("Starting workers", 3.4), ("Last", 9.0)):
        stages.stage(name)
        watch.now_s += seconds
    assert stages.time_spent() == "Time: starting workers 15 s, searching 30 s", "the last one has not ended"


def test_time_left_of_a_measurement_is_its_own_before_there_are_trials(watch: SimpleNamespace) -> None:
    recorded: list[JobStage] = []
    stages = Stages(Silent(), recorded.append)
    stages.stage("Measuring full precision")
    stages.report(Step(stage=Stage.ACCURACY, done=0, total=4))
    watch.now_s += 10.0
    stages.report(Step(stage=Stage.ACCURACY, done=1, total=4))
    assert recorded[-1].remaining_s == pytest.approx(30.0)
    stages.trial(PROGRESS)
    watch.now_s += 10.0
    stages.report(Step(stage=Stage.ACCURACY, done=2, total=4))
    assert recorded[-1].remaining_s == 60.0, "then it is that of the search"


def test_trials_and_stages_are_passed_on() -> None:
    class Listener(Silent):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def stage(self, text: str) -> None:
            self.heard.append(text)

        def trial(self, progress: Progress) -> None:
            self.heard.append(progress)

    listener = Listener()
    stages = Stages(listener)
    stages.stage("Searching")
    stages.trial(PROGRESS)
    assert listener.heard == ["Searching", PROGRESS]
