"""A service to break, and the one judge of what is left of its jobs.

The short form of these tests runs with all others; ``AUTOTUNE_CHAOS=long`` makes them as long as the figures in
``docs/reliability.md`` say.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.client.actions import submit
from autotune.jobs.budget import searched
from autotune.jobs.front import LiveFront, compute_front
from autotune.jobs.records import JobRecord, JobState, TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import JobSpec
from autotune.store.base import Store
from autotune.store.open import open_store

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("autotune"))
STUB = str(ROOT / "tests" / "data" / "stub_task.py")
LONG = os.environ.get("AUTOTUNE_CHAOS") == "long"
#: Seconds of a lease here; a driver must start within them on a busy machine too.
LEASE_S = 5.0


@pytest.fixture
def rounds() -> Callable[[int, int], int]:
    """Return how often to do something: in the short form, and in the long one."""
    return lambda short, long: long if LONG else short


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(3 * 3600 if LONG else 300))


def wait_for(check: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.05)
    pytest.fail(f"within {seconds:g} s, this did not happen: {what}")


class Witness:
    """Looks at one job again and again, and knows what it must still hold."""

    def __init__(self, store: Store, job_id: str) -> None:
        self._store, self.job_id = store, job_id
        self.seen: dict[int, TrialRecord] = {}

    def job(self) -> JobRecord:
        return self._store.job(self.job_id)

    def look(self) -> int:
        """Return the number of trials; a trial that was there once must be there unchanged."""
        found = {trial.number: trial for trial in self._store.trials(self.job_id)}
        changed = [number for number, trial in self.seen.items() if found.get(number) != trial]
        assert changed == [], f"trials {changed} of job {self.job_id} were lost or changed"
        self.seen = found
        return len(found)

    def judge(self, *, gaps: int = 0, state: JobState = JobState.FINISHED) -> None:
        """Check everything that is promised of a job that has ended.

        Args:
            gaps: numbers at most that were given out and never recorded, because their driver died.
            state: how the job must have ended.
        """
        self.look()
        job, trials = self.job(), list(self.seen.values())
        assert (job.state, job.error, job.leased_until, job.order) == (state, None, None, None)
        if state is JobState.FINISHED:
            assert searched(trials) == job.spec.search.trials
        assert max(self.seen, default=-1) + 1 - len(trials) <= gaps, "trials are missing"
        maps = Counter((trial.key, trial.kind is TrialKind.FINAL) for trial in trials)
        assert [key for key, count in maps.items() if count > 1] == [], "a map was recorded twice"
        self._judge_fronts(trials, job)
        self._judge_events(job)
        for trial in trials:
            measured = trial.state is TrialState.COMPLETE
            assert bool(self._store.latency(self.job_id, trial.number)) == measured, f"trial {trial.number} is half"

    def _judge_fronts(self, trials: list[TrialRecord], job: JobRecord) -> None:
        in_time = sorted(trials, key=lambda trial: trial.finished_at)
        objectives, fronts = job.spec.objectives, self._store.fronts(self.job_id)
        live = LiveFront([], objectives)
        replayed = [front for front in map(live.add, in_time) if front]
        assert [(f.trials, f.members) for f in replayed] == [(f.trials, f.members) for f in fronts]
        for front in fronts:
            again = compute_front(in_time[: front.trials], objectives)
            assert again.members == front.members
            assert again.hypervolume == pytest.approx(front.hypervolume, rel=1e-9)

    def _judge_events(self, job: JobRecord) -> None:
        events = self._store.events(self.job_id)
        kinds = Counter(told.kind for told in events)
        claims = kinds["started"] + kinds["resumed"] + kinds["taken_over"]
        carried_out = kinds["paused"] + kinds["cancelled"]
        assert claims <= job.epoch <= claims + carried_out, f"drivers came and went unnoticed: {kinds}"
        assert kinds[job.state.value] == 1
        assert events[-1].kind == job.state.value


class Service:
    """Controllers in processes of their own, and what they wrote."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self._folder = url, folder
        self._processes: list[psutil.Popen] = []
        self.logs: list[Path] = []
        self.store = open_store(url, patience_s=60.0)

    def serve(self, *options: str) -> psutil.Popen:
        """Start a controller."""
        arguments = ["serve", "--lease", str(LEASE_S), "--task-file", STUB, *options]
        return self.run([COMMAND, *arguments, "--database", self.url])

    def run(self, command: list[str]) -> psutil.Popen:
        """Start a process whose output must hold no traceback."""
        self.logs.append(self._folder / f"{len(self.logs)}.log")
        with self.logs[-1].open("wb") as log:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            process = psutil.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        self._processes.append(process)
        return process

    def submit(self, *, pool: str = "inline", count: int = 1, trials: int = 20, **task: Any) -> Witness:
        """Queue a job of the stub task."""
        spec = {
            "name": "chaos",
            "task": {"name": "stub", "parameters": task},
            "objectives": ["latency_p50_ms", "divergence"],
            "search": {"trials": trials, "sampler": "random", "seed": 1},
            "workers": {"pool": pool, "count": count, "cpus": 0.5, "trial_timeout_s": 120.0},
        }
        return Witness(self.store, submit(self.store, JobSpec.parse(spec)).id)

    def settle(self, *witnesses: Witness, seconds: float = 120.0) -> None:
        """Wait until jobs have ended, and look at them meanwhile."""

        def ended() -> bool:
            for witness in witnesses:
                witness.look()
            return not any(witness.job().state.is_live for witness in witnesses)

        wait_for(ended, seconds, f"all jobs end; they are {[w.job() for w in witnesses]}\n{self.tail()}")

    def progress(self, witness: Witness, more: int = 1, seconds: float = 60.0) -> None:
        """Wait until some more trials are recorded, or the job has ended."""
        target = len(witness.seen) + more
        wait_for(
            lambda: witness.look() >= target or not witness.job().state.is_live, seconds,
            f"job {witness.job_id} goes on\n{self.tail()}",
        )  # fmt: skip

    def tail(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-1500:] for log in self.logs[-3:])

    def end(self) -> None:
        """Stop everything as its user would."""
        for process in self._processes:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(120)

    def check_output(self) -> None:
        for log in self.logs:
            text = log.read_text(errors="replace")
            assert "Traceback" not in text, text[-4000:]
            assert "database is locked" not in text, text[-4000:]

    def controllers(self) -> list[psutil.Popen]:
        """Return two controllers, after starting those that are missing."""
        alive = [process for process in self._processes if process.is_running() and process.poll() is None]
        return [*alive, *(self.serve("--jobs", "2") for _ in range(2 - len(alive)))]

    def kill(self) -> None:
        """Leave nothing behind."""
        for process in self._processes:
            for one in [*children_of(process), process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()
        self.store.close()


@contextmanager
def serving(url: str, folder: Path) -> Iterator[Service]:
    folder.mkdir(parents=True)
    service = Service(url, folder)
    try:
        yield service
        service.end()
        service.check_output()
    finally:
        service.kill()


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[[str], Service]]:
    """Return what opens a database for a test of its own, without controllers at first."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(serving(url, tmp_path / "logs"))


@pytest.fixture
def service(start_service: Callable[[str], Service], sqlite_url: str) -> Service:
    return start_service(sqlite_url)


@pytest.fixture(scope="session")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("pair")
    with serving(f"sqlite:///{folder / 'autotune.db'}", folder / "logs") as service:
        yield service


@pytest.fixture
def pair(_pair: Service) -> Iterator[Service]:
    """A database with two controllers, which tests share because they take seconds to start."""
    _pair.controllers()
    yield _pair
    _pair.check_output()


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def until() -> Callable[[Callable[[], Any], float, str], Any]:
    return wait_for
