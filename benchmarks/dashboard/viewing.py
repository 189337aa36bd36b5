"""Whether viewers slow down a running job: trials per second with and without viewers, alternating in one run.

Workers are simulated, so trials are cheap and the driver commits many per second. Every viewer keeps the front of the
newest job open, which refreshes every two seconds. The work of the viewers' browsers is done on this machine, at the
lowest priority.

    python benchmarks/dashboard/viewing.py [--viewers N]
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.synchronize import Event
from pathlib import Path

import sessions

from autotune.store.open import open_store

sys.path.append(str(Path(__file__).parents[1] / "service"))
import simulation

#: Milliseconds per trial -> trials per round, so that a round takes some seconds.
TRIALS = {0: 400, 20: 200, 100: 60}
#: Whether each round has viewers; alternating, so that drift of the machine affects both equally.
ROUNDS = (False, True, True, False) * 2
REFRESH_S = 2.0


def watch(address: str, viewers: int, looking: Event) -> None:
    """View the newest job until this process is ended."""
    os.nice(19)  # as if on another machine
    once = sessions.Load(sessions=1, reruns=0, pause_s=REFRESH_S)
    asyncio.run(sessions.look(address, "front", "", once, 0))
    looking.set()
    load = sessions.Load(sessions=viewers, reruns=sys.maxsize, pause_s=REFRESH_S)
    asyncio.run(sessions.crowd(address, "front", "", load))


@contextmanager
def watched(address: str, viewers: int) -> Iterator[None]:
    """Run viewers while the context is open."""
    context = multiprocessing.get_context("spawn")
    looking = context.Event()
    process = context.Process(target=watch, args=(address, viewers, looking), daemon=True)
    process.start()
    try:
        if not looking.wait(60):  # what starting them takes is not what looking takes
            raise RuntimeError("the viewers did not begin to look")
        yield
        if not process.is_alive():
            raise RuntimeError("the viewers stopped looking")
    finally:
        process.terminate()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, default=5)
    viewers = parser.parse_args().viewers
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/jobs.db"
        store = open_store(database)
        print(f"{viewers} viewers; {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} without them")
        with sessions.served(sessions.APP, database, Path(folder, "log")) as address:
            for trial_ms, trials in TRIALS.items():
                load = simulation.Load(trials=trials, trial_s=trial_ms / 1000)
                rates: dict[bool, list[float]] = {True: [], False: []}
                for looked_at in ROUNDS:
                    with watched(address, viewers) if looked_at else nullcontext():
                        rates[looked_at].append(simulation.simulate(store, load))
                report(trial_ms, rates)
        store.close()


def report(trial_ms: int, rates: dict[bool, list[float]]) -> None:
    alone, watched_at = (statistics.median(rates[looked_at]) for looked_at in (False, True))
    print(f"trials of {trial_ms:3} ms: {alone:6.1f} a second alone, {watched_at:6.1f} with viewers", end="")
    print(f", ratio {watched_at / alone:.3f}; load average {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
