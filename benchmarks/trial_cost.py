"""Overhead of a trial beyond its forward passes: measuring, searching and recording.

Runs a real job (all-MiniLM-L6-v2, in process, SQLite) and divides the wall-clock seconds of each
sampled trial, from one commit to the next, by the seconds it spent inside forward passes.
"""

import statistics
import tempfile
import time
from pathlib import Path

from autotune.client.actions import submit
from autotune.jobs.progress import Progress, Silent
from autotune.jobs.records import TrialKind
from autotune.jobs.spec import JobSpec
from autotune.search.run import run_job
from autotune.store.open import open_store

TRIALS = 24


class Clock(Silent):
    """Records the time of each commit."""

    def __init__(self) -> None:
        self.commits: list[float] = []

    def trial(self, progress: Progress) -> None:
        self.commits.append(time.perf_counter())


def main() -> None:
    spec = JobSpec.load(Path(__file__).parents[1] / "examples" / "minilm.yaml").dump()
    spec["search"] |= {"trials": TRIALS, "time_limit_s": None}
    spec["workers"]["pool"] = "inline"
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{folder}/bench.db")
        job = submit(store, JobSpec.parse(spec))
        clock = Clock()
        run_job(store, job.id, listener=clock)
        trials = store.trials(job.id)
        store.close()
    walls = [after - before for before, after in zip(clock.commits, clock.commits[1:], strict=False)]
    sampled = [
        (trial, wall)
        for trial, wall in zip(trials[1:], walls, strict=True)
        if trial.kind is TrialKind.SEARCH and trial.forward_seconds
    ]
    measuring = statistics.median(trial.seconds / trial.forward_seconds for trial, _ in sampled)
    whole = statistics.median(wall / trial.forward_seconds for trial, wall in sampled)
    print(f"{len(sampled)} sampled trials of {len(trials[0].choices)} layers")
    forward_s = statistics.median(trial.forward_seconds for trial, _ in sampled)
    print(f"seconds of a trial inside forward passes, median: {forward_s:.2f}")
    print(f"measuring / forward passes, median:               {measuring:.3f}")
    print(f"whole trial / forward passes, median:             {whole:.3f}   (aim: at most 1.1)")


if __name__ == "__main__":
    main()
