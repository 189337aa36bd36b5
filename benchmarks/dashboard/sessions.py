"""How long a page of the dashboard takes when many people look at a large job at once.

Starts the dashboard on a job of 5,000 trials over 300 layers and opens 20 sessions, each a WebSocket client that
speaks Streamlit's protocol. Every session asks for the page again and again, with pauses between, as people do; a
rerun lasts from the request to the server's word that the page is complete. The first look at the job, which reads
it from the database, is reported apart.
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
from dataclasses import dataclass
from pathlib import Path

import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

APP = Path(__file__).parents[2] / "dashboard" / "app.py"
WRITE_JOB = Path(__file__).with_name("large_job.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Who looks how often."""

    sessions: int
    #: Reruns of each session after its first.
    reruns: int
    #: Mean seconds between the end of a rerun and the next request.
    pause_s: float


async def rerun(session: websockets.ClientConnection, page: str, query: str) -> float:
    """Ask for a page, and return the seconds until it is complete and has its heading."""
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
    """Open a session, look at a page, and return the seconds each rerun took, the first one included."""
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


def serve(database: str, port: int, log: Path) -> subprocess.Popen[bytes]:
    """Start the dashboard and wait until it answers."""
    command = [sys.executable, "-m", "streamlit", "run", str(APP), f"--server.port={port}"]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=os.environ | {"AUTOTUNE_DATABASE": database}, stdout=file, stderr=file)
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2):
                return process
        except OSError:
            time.sleep(0.2)
    process.terminate()
    raise RuntimeError(f"the dashboard did not start:\n{log.read_text()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--layers", type=int, default=300)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--reruns", type=int, default=10)
    parser.add_argument("--pause", type=float, default=5.0, help="mean seconds between a session's reruns")
    asked = parser.parse_args()
    load = Load(sessions=asked.sessions, reruns=asked.reruns, pause_s=asked.pause)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        database = f"sqlite:///{folder}/jobs.db"
        written = [sys.executable, str(WRITE_JOB), database, f"--trials={asked.trials}", f"--layers={asked.layers}"]
        job = subprocess.run(written, check=True, capture_output=True, text=True).stdout.strip()
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        process = serve(database, port, Path(folder, "log"))
        try:
            report(f"127.0.0.1:{port}", f"job={job}", asked.trials, asked.layers, load)
        finally:
            process.terminate()
            process.wait()


def report(address: str, query: str, trials: int, layers: int, load: Load) -> None:
    print(f"{trials} trials of {layers} layers; {load.sessions} sessions, {load.pause_s:g} s between reruns of each")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} besides")
    print("page     first look   rerun median      p95   (seconds; aim: p95 below 1)")
    for page in ("front", "map", "diff", "layers", "jobs"):
        (first,) = asyncio.run(look(address, page, query, Load(sessions=1, reruns=0, pause_s=1.0), 0))
        seconds = asyncio.run(crowd(address, page, query, load))
        p95 = statistics.quantiles(seconds, n=20)[-1]
        print(f"{page:8} {first:10.2f} {statistics.median(seconds):14.3f} {p95:8.3f}")


if __name__ == "__main__":
    main()
