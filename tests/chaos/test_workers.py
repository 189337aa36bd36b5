"""Workers on Ray, and Ray itself, that die under jobs."""

import random
import time
from collections.abc import Callable
from typing import Any

import psutil

from autotune.client.actions import cancel
from autotune.jobs.records import JobState, TrialState
from workers.measurement import FailureCause

Rounds = Callable[[int, int], int]


def workers_of(controller: psutil.Process) -> list[psutil.Process]:
    """The workers of the cluster that a controller started; those that measure, not Ray's idle ones."""
    found = []
    for process in controller.children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::_Worker"):
                found.append(process)
        except (psutil.NoSuchProcess, IndexError):
            pass  # it ended meanwhile
    return found


def test_workers_and_ray_die_and_a_cancelled_job_frees_them(service: Any, rounds: Rounds, until: Any) -> None:
    generator, kills, heads = random.Random(5), rounds(2, 100), rounds(1, 20)
    witness = service.submit(pool="ray", count=2, trials=rounds(26, 500), seconds=0.3)
    controller = service.serve()
    service.progress(witness, more=6, seconds=120.0)
    kill_workers(service, witness, controller, kills, generator)
    for _ in range(heads):
        kill_head(service, witness, controller, until)
    service.settle(witness, seconds=900.0)
    # A candidate whose worker was killed three times in a row is a recorded failure, rightly so.
    failed = [trial for trial in witness.seen.values() if trial.state is TrialState.FAILED]
    assert all((trial.failure, trial.attempts) == (FailureCause.CRASH, 3) for trial in failed)
    assert len(failed) <= kills // 3
    witness.judge(gaps=2 * heads)
    retried = sum(trial.attempts - 1 for trial in witness.seen.values())
    print(f"\n{kills} workers killed: {retried} attempts repeated, {len(failed)} candidates given up")

    cancelled = service.submit(pool="ray", count=2, trials=500, seconds=0.3)
    service.progress(cancelled, more=4, seconds=120.0)
    cancel(service.store, cancelled.job_id)
    asked_at = time.monotonic()
    until(lambda: not cancelled.job().state.is_live, 10.0, "the job is cancelled")
    until(lambda: not workers_of(controller), 10.0, "the workers are free")
    freed_s = time.monotonic() - asked_at
    assert freed_s < 10.0
    cancelled.judge(gaps=2, state=JobState.CANCELLED)
    assert service.store.fronts(cancelled.job_id), "the partial front is kept"
    print(f"workers free {freed_s:.1f} s after the job was cancelled")


def kill_workers(service: Any, witness: Any, controller: psutil.Process, kills: int, generator: random.Random) -> None:
    killed = 0
    while killed < kills and witness.job().state.is_live:
        time.sleep(generator.uniform(0.0, 0.5))
        workers = workers_of(controller)
        if workers:
            generator.choice(workers).kill()
            killed += 1
        service.progress(witness, seconds=120.0)
    assert killed == kills, f"the job ended after {killed} kills; give it more trials"


def kill_head(service: Any, witness: Any, controller: psutil.Process, until: Any) -> None:
    """Kill the process that Ray's cluster hangs on, and see the job go on on another cluster."""
    before = len(service.store.events(witness.job_id))
    (gcs,) = (one for one in controller.children(recursive=True) if one.name().startswith("gcs_server"))
    gcs.kill()
    killed_at = time.monotonic()

    def noticed() -> bool:
        kinds = [told.kind for told in service.store.events(witness.job_id)[before:]]
        return "released" in kinds or not witness.job().state.is_live

    until(noticed, 60.0, "the controller notices")
    witness.look()  # workers may have recorded a trial or two until then
    service.progress(witness, more=3, seconds=120.0)
    print(f"\nRay's head killed: the job went on within {time.monotonic() - killed_at:.1f} s")
