"""Controllers and drivers that die, freeze and wake up again."""

import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
STUB = str(HERE.parent / "data" / "stub_task.py")
Rounds = Callable[[int, int], int]


def holder(pair: Any, witness: Any) -> psutil.Process:
    """The controller that holds a job."""
    (found,) = (one for one in pair.controllers() if f":{one.pid}:" in witness.job().driver)
    return found


def driver_of(pair: Any, witness: Any) -> psutil.Process:
    """The process that recorded the last trial."""
    return psutil.Process(int(worker_of(witness).removeprefix("inline:")))


def worker_of(witness: Any) -> str:
    witness.look()
    return str(max(witness.seen.values(), key=lambda trial: trial.finished_at).worker)


def has_another_driver(witness: Any, old: str) -> bool:
    return worker_of(witness) != old or not witness.job().state.is_live


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def executions(diary: Path) -> int:
    return len(diary.read_text().splitlines())


def repeated_trials(witness: Any, diary: Path) -> int:
    """How many measurements were made again: at most one for every driver that did not end the job."""
    repeated = executions(diary) - len(witness.seen)
    assert 0 <= repeated < witness.job().epoch, "more was measured again than was under way"
    return repeated


def test_a_driver_killed_between_commit_and_tell_repeats_nothing(
    service: Any, sqlite_url: str, tmp_path: Path, rounds: Rounds
) -> None:
    generator, deaths = random.Random(2), rounds(2, 25)
    witness = service.submit(trials=12 + 6 * deaths, diary=str(tmp_path / "diary"))
    command = [sys.executable, str(HERE / "driver.py"), sqlite_url, witness.job_id, STUB]
    for _ in range(deaths):
        before = witness.look()
        driver = service.run([*command, "--die-at-tell", str(generator.randint(1, 6))])
        assert driver.wait(120) == -signal.SIGKILL
        assert witness.look() > before, "a trial that was committed is lost"
    assert service.run(command).wait(120) == 0
    witness.judge()
    assert executions(tmp_path / "diary") == len(witness.seen), "a recorded trial was measured again"


def test_controllers_killed_at_random_lose_nothing(pair: Any, tmp_path: Path, rounds: Rounds, until: Any) -> None:
    generator, kills = random.Random(3), rounds(1, 25)
    witness = pair.submit(trials=20 + 20 * kills, seconds=0.1, diary=str(tmp_path / "diary"))
    away_s = []
    for _ in range(kills):
        pair.progress(witness, more=generator.randint(1, 8))
        time.sleep(generator.uniform(0.0, 0.3))
        old, orphan = worker_of(witness), driver_of(pair, witness)
        holder(pair, witness).kill()
        killed_at = time.monotonic()
        pair.controllers()
        until(partial(has_another_driver, witness, old), 120.0, f"another driver goes on\n{pair.tail()}")
        away_s.append(time.monotonic() - killed_at)
        assert has_ended(orphan), "a driver outlived its controller"
    pair.settle(witness, seconds=300.0)
    witness.judge()
    repeated = repeated_trials(witness, tmp_path / "diary")
    print(f"\n{kills} controllers killed, {repeated} trials repeated; the job went on within {max(away_s):.1f} s")


def test_drivers_killed_at_random_are_replaced(pair: Any, tmp_path: Path, rounds: Rounds) -> None:
    generator, kills = random.Random(4), rounds(2, 25)
    witness = pair.submit(trials=20 + 10 * kills, seconds=0.1, diary=str(tmp_path / "diary"))
    away_s = []
    for _ in range(kills):
        pair.progress(witness, more=generator.randint(1, 6))
        driver_of(pair, witness).kill()
        killed_at = time.monotonic()
        witness.look()
        pair.progress(witness)
        away_s.append(time.monotonic() - killed_at)
    pair.settle(witness, seconds=300.0)
    witness.judge()
    repeated = repeated_trials(witness, tmp_path / "diary")
    print(f"\n{kills} drivers killed, {repeated} trials repeated; the job went on within {max(away_s):.1f} s")


def test_a_frozen_controller_wakes_up_and_writes_nothing(pair: Any, rounds: Rounds, until: Any) -> None:
    for _ in range(rounds(1, 10)):
        freeze(pair, until)


def suspend_between_writes(pair: Any, *processes: psutil.Process) -> None:
    """Suspend processes while none of them has the database to itself: all others would wait for it to wake up."""
    while True:
        for process in processes:
            process.suspend()
        path = pair.url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError:
                for process in processes:
                    process.resume()


def freeze(pair: Any, until: Any) -> None:
    """Freeze the controller of a new job with its driver until another one goes on with the job."""
    witness = pair.submit(trials=40, seconds=0.15)
    pair.progress(witness, more=3)
    old, zombie = worker_of(witness), holder(pair, witness)
    child = driver_of(pair, witness)
    suspend_between_writes(pair, child, zombie)
    until(partial(has_another_driver, witness, old), 120.0, f"another driver goes on\n{pair.tail()}")
    written = sum(trial.worker == old for trial in witness.seen.values())
    for process in (child, zombie):
        process.resume()
    until(partial(has_ended, child), 120.0, f"the driver that woke up ends\n{pair.tail()}")
    pair.settle(witness)
    witness.judge()
    assert sum(trial.worker == old for trial in witness.seen.values()) == written, "a zombie wrote"
    assert "taken_over" in [told.kind for told in pair.store.events(witness.job_id)]
