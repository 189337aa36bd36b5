"""A Ray cluster on one machine, for the jobs of one controller. Ray's own command runs it.

Run as a program, this module is the cluster's guardian: it ends the cluster when its standard input closes, which
happens even if the controller is killed.
"""

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from workers.errors import ClusterLostError

#: Bytes of Ray's object store: candidates and measurements are small.
_OBJECT_STORE_BYTES = 128 << 20
_START_S = 60.0
_STOP_S = 15.0


class RayHead:
    """A cluster on this machine that can be restarted if it dies."""

    def __init__(self) -> None:
        self._guardian: subprocess.Popen[bytes] | None = None
        #: Host and port that drivers connect to.
        self.address = ""

    def start(self) -> None:
        """Start the cluster, after stopping one that still runs, and wait until drivers can connect.

        Raises:
            ClusterLostError: if the cluster does not start.
        """
        self.stop()
        port = _free_port()
        self.address = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "workers.pools.ray_head", str(port)]
        self._guardian = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + _START_S
        while not answers(self.address):
            if self._guardian.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ClusterLostError("Ray did not start on this machine; see /tmp/ray/session_latest/logs")
            time.sleep(0.2)

    def is_up(self) -> bool:
        """Return whether the cluster is running."""
        return self._guardian is not None and self._guardian.poll() is None and answers(self.address)

    def stop(self) -> None:
        """End the cluster. Safe to call twice."""
        if self._guardian is None:
            return
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guardian.wait(_STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._guardian.pid, signal.SIGKILL)
        self._guardian.wait()
        self._guardian = None


def answers(address: str) -> bool:
    """Return whether a server accepts connections at ``address``, a host and port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except (OSError, ValueError):
        return False
    return True


def use_token() -> None:
    """Make this process and its children authenticate to Ray, with a new token unless one is configured."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _guard(port: str) -> None:
    """Run the cluster until standard input closes or it dies."""
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
        "--node-ip-address=127.0.0.1", f"--num-cpus={os.cpu_count() or 1}", "--include-dashboard=false",
        f"--object-store-memory={_OBJECT_STORE_BYTES}", "--disable-usage-stats",
    ]  # fmt: skip
    head = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Nothing is ever written to standard input, so it becomes readable only when it closes.
    while head.poll() is None and not select.select([sys.stdin], [], [], 0.5)[0]:
        pass
    head.terminate()
    head.wait()


if __name__ == "__main__":
    _guard(sys.argv[1])
