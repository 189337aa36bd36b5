"""Runs one job in this process, which dies or runs out of space where it is told to.

python driver.py URL JOB TASK_FILE [--die-at-tell N] [--pages FILE]
"""

import argparse
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from autotune.search.run import run_job
from autotune.search.study import Study
from autotune.store.open import attach_store


def die_at_tell(number: int) -> None:
    """Kill this process after a trial was committed, before the sampler is told of it."""
    told = 0

    def tell(self: Study, *arguments: Any) -> None:
        nonlocal told
        told += 1
        if told == number:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, *arguments)

    original, Study.tell = Study.tell, tell  # type: ignore[method-assign]


def limit_space(path: Path) -> None:
    """Let a SQLite database have as many pages as a file says."""

    def limit(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {int(path.read_text())}")

    sa.event.listen(sa.pool.Pool, "checkout", limit)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("job")
    parser.add_argument("task_file")
    parser.add_argument("--die-at-tell", type=int)
    parser.add_argument("--pages", type=Path)
    chosen = parser.parse_args()
    if chosen.die_at_tell:
        die_at_tell(chosen.die_at_tell)
    if chosen.pages:
        limit_space(chosen.pages)
    run_job(attach_store(chosen.url, patience_s=600.0), chosen.job, task_file=chosen.task_file)


if __name__ == "__main__":
    main()
