"""Many clients, many small jobs, and users who change their minds at the worst moment."""

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from autotune.client.actions import cancel
from autotune.errors import ConflictError
from autotune.jobs.records import JobState
from autotune.store.open import open_store

HERE = Path(__file__).parent
Rounds = Callable[[int, int], int]


@pytest.mark.parametrize(("database", "clients", "jobs"), [("sqlite_url", 16, 25), ("postgres_url", 50, 20)])
def test_clients_that_submit_at_once_are_all_served(
    request: pytest.FixtureRequest, database: str, clients: int, jobs: int, tmp_path: Path, rounds: Rounds
) -> None:
    url, clients, jobs = request.getfixturevalue(database), rounds(3, clients), rounds(5, jobs)
    store, go = open_store(url), tmp_path / "go"
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(HERE / "client.py"), url, f"c{number}", str(jobs), str(go)],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )
            for number in range(clients)
        ]  # fmt: skip
        for process in processes:
            stack.callback(process.kill)  # in case they wait for one that did not start
        assert all(process.stdout and process.stdout.readline() == "ready\n" for process in processes)
        go.touch()
        answers = [process.communicate(timeout=300) for process in processes]
    assert [errors for _, errors in answers if errors] == []
    lines = [line.split() for said, _ in answers for line in said.splitlines()]
    shared = {line[0] for line in lines if len(line) == 1}
    own = {line[0]: float(line[1]) for line in lines if len(line) == 2}
    assert len(shared) == 1, "one key made several jobs"
    assert len(own) == clients * jobs
    assert {job.id for job in store.jobs()} == shared | set(own)
    store.close()
    p50, p99 = np.percentile(list(own.values()), [50, 99])
    print(f"\n{clients} clients x {jobs} jobs on {database}: p50 {p50:.0f} ms, p99 {p99:.0f} ms a submission")


def test_a_cancel_that_races_with_the_end_has_one_winner(pair: Any, rounds: Rounds) -> None:
    generator, outcomes = random.Random(6), Counter[str]()
    for _ in range(rounds(4, 200)):
        witness = pair.submit(trials=6, seconds=0.05)
        pair.progress(witness, more=generator.randint(1, 14))
        time.sleep(generator.uniform(0.0, 0.1))
        accepted = True
        try:
            cancel(pair.store, witness.job_id)
        except ConflictError:
            accepted = False
        pair.settle(witness, seconds=60.0)
        state = witness.job().state
        assert accepted or state is JobState.FINISHED, "a cancel that was refused was carried out"
        witness.judge(state=state)
        if state is JobState.CANCELLED:
            assert cancel(pair.store, witness.job_id).state is state, "cancelling twice gave another answer"
        outcomes[state.value if accepted else "refused"] += 1
    print(f"\nraced cancels: {dict(outcomes)}")


def test_no_trial_starts_two_seconds_after_a_cancel(pair: Any, tmp_path: Path, until: Any) -> None:
    diary = tmp_path / "diary"
    witness = pair.submit(trials=2000, seconds=0.05, diary=str(diary))
    pair.progress(witness, more=5)
    cancel(pair.store, witness.job_id)
    time.sleep(2.0)  # what is promised
    started = len(diary.read_text().splitlines())
    until(lambda: not witness.job().state.is_live, 60.0, "the job is cancelled")
    assert len(diary.read_text().splitlines()) - started <= 1
    witness.judge(state=JobState.CANCELLED)


def test_a_controller_that_runs_many_jobs_keeps_its_size(start_service: Any, postgres_url: str, rounds: Rounds) -> None:
    service, count, most = start_service(postgres_url), rounds(4, 2000), rounds(60, 7200)
    controller = service.serve("--jobs", "2")
    ends_at, done, sizes = time.monotonic() + most, 0, []
    while done < count and time.monotonic() < ends_at:
        batch = [service.submit(trials=4) for _ in range(2)]
        service.settle(*batch)
        for witness in batch:
            witness.judge()
        done += len(batch)
        sizes.append(size_of(controller))
    start, end = sizes[min(len(sizes) // 5, 5)], sizes[-1]
    growth = end[0] / start[0] - 1.0
    print(f"\n{done} jobs: controller {start[0] / 2**20:.1f} -> {end[0] / 2**20:.1f} MiB ({growth:+.1%}), "
          f"files {start[1]} -> {end[1]}, processes {start[2]} -> {end[2]}")  # fmt: skip
    assert growth < 0.05
    assert end[1] <= start[1] + 2, "files or connections stay open"
    assert end[2] <= start[2], "processes stay"
    assert [one for one in controller.children(recursive=True) if one.status() == psutil.STATUS_ZOMBIE] == []


def size_of(controller: psutil.Process) -> tuple[int, int, int]:
    """Bytes, open files and processes of a controller between two batches of jobs."""
    deadline = time.monotonic() + 60.0
    while len(controller.children(recursive=True)) > 2 and time.monotonic() < deadline:
        time.sleep(0.05)  # children that have settled their job are about to end
    return controller.memory_info().rss, controller.num_fds(), len(controller.children(recursive=True))
