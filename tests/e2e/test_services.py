"""The commands of docker-compose.yml, run natively: PostgreSQL, migration, Ray nodes, driver, dashboard."""

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TASK_FILE = ROOT / "tests" / "data" / "fragile_task.py"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())

pytestmark = pytest.mark.slow


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service in a process group of its own and end it as a container is ended."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(check: Any, seconds: float, what: str, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check():
            return
        time.sleep(0.3)
    pytest.fail(f"{what} was not ready within {seconds} s:\n{log.read_text()[-3000:]}")


def command_of(service: str, replacements: dict[str, str]) -> list[str]:
    command = COMPOSE["services"][service]["command"]
    assert isinstance(command, list)
    return [replace(word, replacements) for word in command]


def replace(word: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        word = word.replace(old, new)
    return word


def test_compose_commands_run_a_job_that_is_submitted_over_http(
    postgres_url: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    ray_port, web_port, api_port, health_port = (free_port() for _ in range(4))
    address = f"127.0.0.1:{ray_port}"
    swap = {
        "ray-head:6379": address,
        "--port=6379": f"--port={ray_port}",
        "0.0.0.0:8123": f"127.0.0.1:{api_port}",
        "127.0.0.1:8123": f"127.0.0.1:{health_port}",
        "0.0.0.0": "127.0.0.1",
    }
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "AUTOTUNE_DATABASE": postgres_url,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    write_job(tmp_path)
    logs = {name: tmp_path / f"{name}.log" for name in COMPOSE["services"]}

    subprocess.run(command_of("migrate", swap), env=environment, check=True, capture_output=True, timeout=120)
    worker = [*command_of("ray-worker", swap), "--num-cpus=2", "--num-gpus=1"]
    health = [replace(word, swap) for word in COMPOSE["services"]["ray-head"]["healthcheck"]["test"][1:]]
    # The controller joins from the head's node here; in a container it first becomes a node of its own.
    controller = shlex.split(command_of("controller", swap)[-1].rpartition("exec ")[2])
    controller += ["--task-file", str(TASK_FILE)]

    def ray_is_healthy() -> bool:
        return subprocess.run(health, env=environment, capture_output=True, check=False).returncode == 0

    with ExitStack() as started:
        started.enter_context(running(command_of("ray-head", swap), environment, logs["ray-head"]))
        wait_for(ray_is_healthy, 120, "Ray's head", logs["ray-head"])
        started.enter_context(running(worker, environment, logs["ray-worker"]))
        wait_for(lambda: "Ray runtime started" in logs["ray-worker"].read_text(), 120, "worker", logs["ray-worker"])
        started.enter_context(running(controller, environment, logs["controller"]))
        started.enter_context(running(command_of("api", swap), environment, logs["api"]))
        for name, port in (("controller", health_port), ("api", api_port)):
            ready = f"http://127.0.0.1:{port}/readyz"
            wait_for(lambda ready=ready: answers(ready), 120, name, logs[name])

        token = json.loads(autotune(environment, "token", "add", "ann", "--json"))["text"]
        remote = environment | {"AUTOTUNE_URL": f"http://127.0.0.1:{api_port}", "AUTOTUNE_TOKEN": token}
        del remote["AUTOTUNE_DATABASE"]
        front = json.loads(autotune(remote, "submit", str(tmp_path / "job.yaml"), "--watch", "--json"))
        assert front["job"]["state"] == "finished", logs["controller"].read_text()[-3000:]
        assert front["job"]["trials"] == 10
        autotune(remote, "export", "last", "--pick", "fastest", "--output", str(tmp_path / "map.json"))
        assert json.loads((tmp_path / "map.json").read_text())["provenance"]["job"] == front["job"]["id"]

    web = [*command_of("dashboard", swap), "--port", str(web_port)]
    with running(web, environment, logs["dashboard"]):
        url = f"http://127.0.0.1:{web_port}/_stcore/health"
        wait_for(lambda: answers(url), 120, "the dashboard", logs["dashboard"])


def autotune(environment: dict[str, str], *arguments: str) -> str:
    """Run the command line and return what it prints."""
    done = subprocess.run(
        ["autotune", *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_job(folder: Path) -> None:
    job = {
        "schema": "autotune.job/v1",
        "name": "services",
        "task": {"name": "fragile"},
        "objectives": ["latency_p50_ms", "divergence"],
        "search": {"trials": 10},
        "measurement": {"repeats": 20, "warmup_s": 0.0},
        # Two workers share the one GPU of the cluster; a third would be refused.
        "workers": {"count": 2, "cpus": 1, "gpus": 0.5},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
