"""Response times of dashboard pages while many people view a large job.

Starts the dashboard on a job of 5,000 trials over 300 layers and opens 20 sessions, each a WebSocket client that
speaks Streamlit's protocol. Every session requests the page repeatedly, with pauses, as people do. A rerun lasts from
the request to the server's message that the page is complete. The first view of the job, which reads it from the
database, is reported separately. An app whose pages have only a title shows the time of Streamlit itself, which is a
lower bound for every page.
"""

import argparse
import asyncio
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from autotune.tuning.dashboard import NICENESS

APP = Path(__file__).parents[2] / "dashboard" / "app.py"
EMPTY_APP = Path(__file__).with_name("empty_app.py")
#: Pages of the dashboard; the empty app has the same.
SETTINGS = ("--runner.postScriptGC=false", "--server.headless=true", "--server.address=127.0.0.1")
PAGES = ("front", "map", "diff", "layers", "jobs", "compare", "submit", "system")
WRITE_JOB = Path(__file__).with_name("large_job.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Number of sessions and their request rate."""

    sessions: int
    #: Reruns of each session after its first.
    reruns: int
    #: Mean seconds between the end of a rerun and the next request.
    pause_s: float


async def rerun(session: websockets.ClientConnection, page: str, query: str) -> float:
    """Request a page, and return the seconds until it is complete and has its heading."""
    request = BackMsg()
    request.rerun_script.page_name, request.rerun_script.query_string = page, query
    began, headings = time.perf_counter(), set()
    await session.send(request.SerializeToString())
    while True:
        answer = ForwardMsg.FromString(await session.recv())
        headings.add(answer.delta.new_element.heading.body)
        if answer.WhichOneof("type") == "script_finished":
            if answer.script_finished != ForwardMsg.FINISHED_SUCCESSFULLY:
                raise RuntimeError(
                    f"the page ended with {ForwardMsg.ScriptFinishedStatus.Name(answer.script_finished)}"
                )
            if page.capitalize() not in headings:
                raise RuntimeError(f"not the page {page}, but {headings}")
            return time.perf_counter() - began


async def look(address: str, page: str, query: str, load: Load, seed: int) -> list[float]:
    """Open a session on a page, and return the seconds of each rerun, including the first."""
    rng = random.Random(seed)
    async with websockets.connect(f"ws://{address}/_stcore/stream", max_size=None) as session:
        seconds = [await rerun(session, page, query)]
        for _ in range(load.reruns):
            await asyncio.sleep(rng.expovariate(1.0 / load.pause_s))
            seconds.append(await rerun(session, page, query))
    return seconds


async def crowd(address: str, page: str, query: str, load: Load) -> list[float]:
    """Return the seconds of all reruns of all sessions after each one's first."""
    sessions = (look(address, page, query, load, seed) for seed in range(load.sessions))
    return [seconds for session in await asyncio.gather(*sessions) for seconds in session[1:]]


@contextmanager
def served(app: Path, database: str, log: Path) -> Iterator[str]:
    """Run an app as ``autotune dashboard`` does, and yield its address once it responds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(app), f"--server.port={port}", *SETTINGS]
    with log.open("w") as file:
        environment = os.environ | {"AUTOTUNE_DATABASE": database}
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, preexec_fn=lambda: os.nice(NICENESS)
        )
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2):
                break
        except OSError:
            time.sleep(0.2)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--layers", type=int, default=300)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--reruns", type=int, default=10)
    parser.add_argument("--pause", type=float, default=5.0, help="mean seconds between a session's reruns")
    asked = parser.parse_args()
    load = Load(sessions=asked.sessions, reruns=asked.reruns, pause_s=asked.pause)
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/jobs.db"
        written = [sys.executable, str(WRITE_JOB), database, f"--trials={asked.trials}", f"--layers={asked.layers}"]
        job = subprocess.run(written, check=True, capture_output=True, text=True).stdout.strip()
        print(f"{asked.trials} trials of {asked.layers} layers; {load.sessions} sessions, ", end="")
        print(f"{load.pause_s:g} s between reruns of each; {os.cpu_count()} cores")
        print("page     first look   rerun median      p95   load   (seconds; aim: p95 below 1)")
        for app, pages in ((EMPTY_APP, ("empty",)), (APP, PAGES)):
            with served(app, database, Path(folder, "log")) as address:
                asyncio.run(look(address, "submit", "", Load(sessions=1, reruns=1, pause_s=0.1), 0))  # imports
                for page in pages:
                    report(address, page, f"job={job}", load)


def report(address: str, page: str, query: str, load: Load) -> None:
    """Measure a page and print its row, with the load average before (of other processes) and after (of all)."""
    before = os.getloadavg()[0]
    (first,) = asyncio.run(look(address, page, query, Load(sessions=1, reruns=0, pause_s=1.0), 0))
    seconds = asyncio.run(crowd(address, page, query, load))
    p95 = statistics.quantiles(seconds, n=20)[-1]
    print(f"{page:8} {first:10.2f} {statistics.median(seconds):14.3f} {p95:8.3f}", end="")
    print(f"   {before:.1f}, then {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
