"""Controllers and drivers that die, freeze and wake up again."""

import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

HERE = Path(__file__).parent
STUB = str(HERE.parent / "data" / "stub_task.py")
Rounds = Callable[[int, int], int]

pytestmark = pytest.mark.slow


def drivers_of(controller: psutil.Process, workers: set[str]) -> list[psutil.Process]:
    """The children of a controller that recorded trials in process."""
    return [child for child in controller.children(recursive=True) if f"inline:{child.pid}" in workers]


def holders(controllers: list[psutil.Process], witness: Any) -> list[psutil.Process]:
    """The controller that holds a job."""
    return [one for one in controllers if f":{one.pid}:" in witness.job().driver]


def worker_of(witness: Any) -> str:
    witness.look()
    return str(max(witness.seen.values(), key=lambda trial: trial.finished_at).worker)


def executions(diary: Path) -> int:
    return len(diary.read_text().splitlines())


def test_a_driver_killed_between_commit_and_tell_repeats_nothing(
    service: Any, sqlite_url: str, tmp_path: Path, rounds: Rounds
) -> None:
    generator, deaths = random.Random(2), rounds(3, 25)
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


def test_controllers_killed_at_random_lose_nothing(service: Any, tmp_path: Path, rounds: Rounds) -> None:
    generator, kills = random.Random(3), rounds(2, 25)
    witness = service.submit(trials=40 + 20 * kills, seconds=0.1, diary=str(tmp_path / "diary"))
    controllers = [service.serve(), service.serve()]
    away_s = []
    for _ in range(kills):
        service.progress(witness, more=generator.randint(1, 8))
        time.sleep(generator.uniform(0.0, 0.3))
        (holder,) = holders(controllers, witness)
        holder.kill()
        killed_at = time.monotonic()
        controllers = [*(one for one in controllers if one is not holder), service.serve()]
        witness.look()
        service.progress(witness)
        away_s.append(time.monotonic() - killed_at)
    service.settle(witness, seconds=300.0)
    witness.judge()
    repeated = executions(tmp_path / "diary") - len(witness.seen)
    assert 0 <= repeated <= kills, "more was measured again than was under way"
    print(f"\n{kills} controllers killed, {repeated} trials repeated; the job went on within {max(away_s):.1f} s")


def test_drivers_killed_at_random_are_replaced(service: Any, tmp_path: Path, rounds: Rounds) -> None:
    generator, kills = random.Random(4), rounds(2, 25)
    witness = service.submit(trials=30 + 10 * kills, seconds=0.1, diary=str(tmp_path / "diary"))
    controller = service.serve()
    for _ in range(kills):
        service.progress(witness, more=generator.randint(1, 6))
        (driver,) = drivers_of(controller, {worker_of(witness)})
        driver.kill()
    service.settle(witness, seconds=300.0)
    witness.judge()
    assert executions(tmp_path / "diary") - len(witness.seen) <= kills
    kinds = [told.kind for told in service.store.events(witness.job_id)]
    assert kinds.count("released") == kills


def test_a_frozen_controller_wakes_up_and_writes_nothing(service: Any, rounds: Rounds, until: Any) -> None:
    controllers = [service.serve(), service.serve()]
    for _ in range(rounds(1, 10)):
        witness = service.submit(trials=50, seconds=0.15)
        service.progress(witness, more=3)
        (zombie,), old = holders(controllers, witness), worker_of(witness)
        (child,) = drivers_of(zombie, {old})
        for process in (child, zombie):
            process.suspend()
        until(lambda: worker_of(witness) != old, 60.0, f"another driver goes on\n{service.tail()}")
        written = sum(trial.worker == old for trial in witness.seen.values())
        for process in (child, zombie):
            process.resume()
        until(lambda: not child.is_running(), 20.0, f"the driver that woke up ends\n{service.tail()}")
        service.settle(witness)
        witness.judge()
        assert sum(trial.worker == old for trial in witness.seen.values()) == written, "a zombie wrote"
        assert "taken_over" in [told.kind for told in service.store.events(witness.job_id)]
