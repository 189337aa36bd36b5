"""The dashboard as a process: its command, and one that runs until it is stopped or this process ends."""

import atexit
import importlib.util
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import JobFailedError
from autotune.markup import tag

#: Niceness of the dashboard, which must not disturb searches on the same machine; see ``os.nice``.
NICENESS = 10
_ADDRESS = "127.0.0.1"
#: Longest wait for the dashboard to answer, and the pause between attempts, in seconds.
_PATIENCE_S, _PAUSE_S = 60.0, 0.2


def command(address: str, port: int) -> list[str]:
    """Return the command that serves the dashboard of the database in the environment."""
    spec = importlib.util.find_spec("dashboard")
    assert spec is not None
    assert spec.origin is not None
    settings = {
        "server.address": address,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": "1",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
        "logger.level": "error",
    }
    script = str(Path(spec.origin).with_name("app.py"))
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "streamlit", "run", script, *flags]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class RunningDashboard:
    """A dashboard on this machine."""

    url: str
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, database: str, job_id: str) -> "RunningDashboard":
        """Serve the dashboard of a database on a free port, and return it with the address of a job's front.

        Raises:
            JobFailedError: if it does not answer.
        """
        with socket.create_server((_ADDRESS, 0)) as free:
            port = free.getsockname()[1]
        process = subprocess.Popen(
            command(_ADDRESS, port),
            env=os.environ | {"AUTOTUNE_DATABASE": database},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.nice(NICENESS),
        )
        started = cls(url=f"http://{_ADDRESS}:{port}/front?job={job_id}", process=process)
        atexit.register(started.stop)
        _wait_until_it_answers(process, port)
        return started

    def stop(self) -> None:
        """End the dashboard. Safe to call twice."""
        self.process.terminate()
        self.process.wait()

    def __repr__(self) -> str:
        return f"Dashboard on {self.url}"

    def _repr_html_(self) -> str:
        return tag("a", self.url, href=self.url, target="_blank")


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    give_up = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < give_up:
        try:
            socket.create_connection((_ADDRESS, port), timeout=1.0).close()
            return
        except OSError:
            time.sleep(_PAUSE_S)
    process.terminate()
    raise JobFailedError("the dashboard does not start; see why with: autotune dashboard")
