"""Databases that die, fill up and are busy, under drivers that must not notice more than a delay."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotune.store.open import open_store

HERE = Path(__file__).parent
STUB = str(HERE.parent / "data" / "stub_task.py")
Rounds = Callable[[int, int], int]


def integrity(url: str) -> list[Any]:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall()


def test_a_sqlite_writer_killed_at_any_point_leaves_whole_trials(service: Any, sqlite_url: str, rounds: Rounds) -> None:
    generator, job_id, count = random.Random(0), service.submit().job_id, 0
    for _ in range(rounds(6, 200)):
        command = [sys.executable, str(HERE / "writer.py"), sqlite_url, job_id, str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
            try:
                assert writer.stdout is not None
                assert writer.stdout.readline().strip() == str(count)
                time.sleep(generator.uniform(0.0, 0.05))
            finally:
                writer.send_signal(signal.SIGKILL)
            said, errors = writer.communicate()
        assert "Traceback" not in errors
        promised = [int(number) for number in said.split("\n")[:-1]]
        store = open_store(sqlite_url)
        trials = store.trials(job_id)
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert len(trials) > max(promised, default=count)
        assert [told.message for told in store.events(job_id)] == [str(trial.number) for trial in trials]
        assert [front.members for front in store.fronts(job_id)] == [(trial.number,) for trial in trials]
        assert store.job(job_id).elapsed_s == len(trials)
        assert len(store.latency(job_id, len(trials) - 1)) == 1
        count = len(trials)
        store.close()
        assert integrity(sqlite_url) == [("ok",)]


def test_a_full_disk_pauses_a_job_that_then_goes_on(service: Any, sqlite_url: str, tmp_path: Path, until: Any) -> None:
    pages = tmp_path / "pages"
    pages.write_text("48")
    witness = service.submit(trials=60)
    driver = service.run(
        [sys.executable, str(HERE / "driver.py"), sqlite_url, witness.job_id, STUB, "--pages", str(pages)]
    )
    until(lambda: "database or disk is full" in service.tail(), 120.0, "the disk is full")
    stuck_at = witness.look()
    assert 0 < stuck_at < 60
    assert driver.is_running()
    assert integrity(sqlite_url) == [("ok",)]
    (tmp_path / "more").write_text(str(1 << 30))
    (tmp_path / "more").rename(pages)  # the driver may read it at any time
    service.settle(witness)
    witness.judge()
    assert driver.wait(120) == 0


def test_postgresql_is_killed_again_and_again(mortal_postgres: Any, start_service: Any, rounds: Rounds) -> None:
    service = start_service(mortal_postgres.url)
    generator, seconds = random.Random(1), rounds(6, 300)
    witnesses = [service.submit(trials=rounds(40, 1200), seconds=0.2) for _ in range(2)]
    service.serve("--jobs", "2")
    service.progress(witnesses[0])
    ends_at, kills, away_s = time.monotonic() + seconds, 0, []
    while time.monotonic() < ends_at:
        time.sleep(generator.uniform(*((1.0, 3.0) if seconds < 60 else (5.0, 20.0))))
        mortal_postgres.kill()
        time.sleep(generator.uniform(0.0, 5.0 if seconds > 60 else 1.0))
        mortal_postgres.start()
        back_at, kills = time.monotonic(), kills + 1
        for witness in witnesses:
            service.progress(witness, seconds=120.0)
        away_s.append(time.monotonic() - back_at)
    service.settle(*witnesses, seconds=600.0)
    for witness in witnesses:
        witness.judge()
    print(f"\nPostgreSQL killed {kills} times; both jobs go on at most {max(away_s):.1f} s after it is back")
