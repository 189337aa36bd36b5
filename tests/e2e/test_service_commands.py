"""The service by its commands: the same ones on the database and through the HTTP API."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import autotune
from autotune.api.server import ApiServer
from autotune.api.settings import ApiSettings
from autotune.cli.main import main
from autotune.client.remote import RemoteClient
from autotune.errors import JobSpecError, StoreUnavailableError
from autotune.jobs.records import JobState
from autotune.jobs.spec import JobSpec
from autotune.store.in_memory import MemoryStore

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("autotune"))
STUB = str(ROOT / "tests" / "data" / "stub_task.py")

Run = Callable[..., "Done"]


def job(**changes: Any) -> dict[str, Any]:
    return {
        "schema": "autotune.job/v1",
        "name": "queued",
        "task": {"name": "stub", "parameters": {"layers": 4}},
        "objectives": ["latency_p50_ms", "divergence"],
        "search": {"trials": 8, "sampler": "random", "choices": ["fp32", "bf16", "int8_dynamic"]},
        "measurement": {"repeats": 20, "warmup_s": 0.0, "threads": 1},
        "workers": {"pool": "inline"},
    } | changes


def environment(**more: str) -> dict[str, str]:
    return (
        {key: value for key, value in os.environ.items() if not key.startswith("AUTOTUNE_")} | {"COLUMNS": "80"} | more
    )


@dataclass(frozen=True)
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


def invoke(*arguments: str, code: int = 0, **variables: str) -> Done:
    """Run a command as its process would, without the seconds that a process takes to start."""
    out, err, ended = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in [name for name in os.environ if name.startswith("AUTOTUNE_")]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["autotune", *arguments])
        try:
            main()
        except SystemExit as end:
            ended = int(end.code or 0)
    assert ended == code, f"{arguments} ended with {ended}\n{out.getvalue()}\n{err.getvalue()}"
    return Done(out.getvalue(), err.getvalue())


class Service:
    """``autotune serve --listen`` in a folder of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.log = folder, folder / "serve.log"
        self.database = f"sqlite:///{folder / 'autotune.db'}"
        scopes = ("viewer", "submitter", "admin")
        self.tokens = {scope: self.run("token", "add", scope, "--scope", scope).stdout.strip() for scope in scopes}
        self.url = f"http://127.0.0.1:{port}"
        command = [COMMAND, "serve", "--listen", self.url.removeprefix("http://"), "--task-file", STUB]
        with self.log.open("w") as log:
            variables = environment(AUTOTUNE_DATABASE=self.database)
            self.process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 120
        while "the API listens" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def run(self, *arguments: str, code: int = 0, token: str | None = None) -> Done:
        """Run a command on the database; with a token, on the API."""
        place = {} if token is None else {"AUTOTUNE_URL": self.url, "AUTOTUNE_TOKEN": token}
        return invoke(*arguments, code=code, AUTOTUNE_DATABASE=self.database, **place)

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "job.yaml").write_text(yaml.safe_dump(job()))
    slow = job(
        name="slow", task={"name": "stub", "parameters": {"seconds": 0.2}}, search={"trials": 900, "sampler": "random"}
    )
    (folder / "slow.yaml").write_text(yaml.safe_dump(slow))
    started = Service(folder, free_port())
    try:
        started.wait()
        yield started
        assert started.stop() == 0, started.log.read_text()
    finally:
        started.process.kill()
        started.process.wait()
    log = started.log.read_text()
    assert "Traceback" not in log
    assert "Warning" not in log
    assert not any(token in log for token in started.tokens.values())


def test_the_service_knows_the_tasks_of_its_file_and_no_others(service: Service) -> None:
    token = service.tokens["submitter"]
    assert "stub" in {task["name"] for task in json.loads(service.run("tasks", "--json", token=token).stdout)["tasks"]}
    Path(service.file("strange.yaml")).write_text(yaml.safe_dump(job(task={"name": "stubs"})))
    refused = service.run("submit", service.file("strange.yaml"), code=2, token=token)
    assert "task.name: unknown task 'stubs'; did you mean 'stub'?" in refused.stderr


@pytest.fixture(params=["database", "api"])
def run(request: pytest.FixtureRequest, service: Service) -> Run:
    token = service.tokens["submitter"] if request.param == "api" else None
    return lambda *arguments, code=0: service.run(*arguments, code=code, token=token)


def data_of(done: Done) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(done.stdout)
    assert data.pop("schema") == "autotune.cli/v1"
    return data


def test_a_job_is_submitted_watched_and_read(run: Run, service: Service) -> None:
    watched = run("submit", service.file("job.yaml"), "--watch")
    assert "Pareto front of queued" in watched.stdout
    assert "Search started" in watched.stderr
    assert "8/8 · best" in watched.stderr
    assert max(map(len, watched.stdout.splitlines())) <= 80
    front = data_of(run("front", "last", "--json"))
    assert (front["job"]["state"], front["job"]["trials"]) == ("finished", 8)
    again = run("watch", "last")
    assert again.stdout == watched.stdout
    assert data_of(run("jobs", "--json"))["jobs"][0] == front["job"]
    assert data_of(run("show", "last", "0", "--json"))["trial"]["label"] == "fp32"
    run("export", "last", "--output", service.file("map.json"))
    assert json.loads((service.folder / "map.json").read_text())["provenance"]["job"] == front["job"]["id"]
    run("sensitivity", "last", code=8)
    run("show", "last", "99", code=3)
    run("front", "nothing", code=3)


def test_a_running_job_is_steered(run: Run, service: Service) -> None:
    submitted = data_of(run("submit", service.file("slow.yaml"), "--key", f"{id(run)}", "--priority", "2", "--json"))[
        "job"
    ]
    assert (
        data_of(run("submit", service.file("slow.yaml"), "--key", f"{id(run)}", "--priority", "2", "--json"))["job"][
            "id"
        ]
        == submitted["id"]
    )
    run("submit", service.file("job.yaml"), "--key", f"{id(run)}", code=8)
    client = autotune.connect(service.url, token=service.tokens["viewer"])
    updates = client.follow(submitted["id"])
    assert next(update for update in updates if update.progress.done >= 2).state is JobState.RUNNING
    changed = data_of(run("plan", submitted["id"], "--trials", "800", "--priority", "-1", "--json"))["job"]
    assert (changed["budget"], changed["priority"]) == (800, -1)
    run("plan", submitted["id"], code=2)
    run("pause", submitted["id"])
    *_, paused = updates
    assert paused.state is JobState.PAUSED
    assert "paused by its user" in run("watch", submitted["id"], code=9).stderr
    assert "is queued" in run("resume", submitted["id"]).stderr
    run("cancel", submitted["id"])
    *_, last = client.follow(submitted["id"])
    assert last.state is JobState.CANCELLED
    run("watch", submitted["id"], code=9)
    run("pause", submitted["id"], code=8)
    clone = data_of(run("clone", submitted["id"], "--json"))["job"]
    assert clone["id"] != submitted["id"]
    run("cancel", clone["id"])
    client.close()


def test_a_job_that_fails_is_told(run: Run, service: Service) -> None:
    (service.folder / "bad.yaml").write_text(yaml.safe_dump(job(task={"name": "stub", "parameters": {"size": 1}})))
    told = run("submit", service.file("bad.yaml"), "--wait", code=1).stderr
    assert "the job failed: unknown parameter of task 'stub' 'size'" in told


def test_the_service_refuses_whom_it_should(service: Service) -> None:
    service.run("submit", service.file("job.yaml"), code=10, token=service.tokens["viewer"])
    service.run("jobs", code=10, token="wrong")
    error = json.loads(service.run("token", "list", "--json", code=10, token=service.tokens["submitter"]).stderr)
    assert error["error"]["kind"] == "ForbiddenError"
    service.run("token", "list", token=service.tokens["admin"])
    # A database that is named counts more than the variable of a service.
    service.run("jobs", "--database", service.database, token="wrong")
    service.run("jobs", "--url", "ftp://host", code=2)
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        RemoteClient("http://127.0.0.1:9", patience_s=0.0).records.jobs()


def test_the_examples_of_the_page_work(service: Service) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    (shell,) = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    client = autotune.connect(service.url, token=service.tokens["admin"])
    example = client.submit(JobSpec.load(service.file("slow.yaml")))
    variables = environment(URL=service.url, TOKEN=service.tokens["admin"], JOB=example.id)
    for line in shell.splitlines():
        assert shlex.split(line)[0] == "curl"
        done = subprocess.run(
            ["sh", "-c", line], env=variables, cwd=service.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert done.stdout
    (python,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    code = python.replace("http://127.0.0.1:8123", service.url).replace('"..."', repr(service.tokens["submitter"]))
    model = (
        "from workers.tasks import build_task, load_task_file\n"
        f"load_task_file({STUB!r})\nmodel = build_task('stub', {{'layers': 4}}).build_model()\n"
    )
    subprocess.run(
        [sys.executable, "-c", model + code], check=True, cwd=service.folder, capture_output=True, timeout=120
    )
    assert Path(service.file("map.json")).exists()
    client.close()


def test_the_api_alone_ends_cleanly(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    database = f"sqlite:///{tmp_path / 'autotune.db'}"
    listen = ("api", "--listen", f"127.0.0.1:{port}", "--no-authentication")
    variables = environment(AUTOTUNE_DATABASE=database)
    command = [COMMAND, *listen, "--json-logs"]
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process, ExitStack() as stack:
        stack.callback(process.kill)  # in case it does not end
        assert process.stderr is not None
        first = json.loads(process.stderr.readline())
        assert first["message"] == f"the API listens at http://127.0.0.1:{port}; NO token is required"
        with closing(autotune.connect(f"http://127.0.0.1:{port}")) as client:
            queued = client.submit(JobSpec.parse(job()))
            updates = client.follow(queued.id)
            assert next(updates).state is JobState.QUEUED
            with pytest.raises(JobSpecError, match=r"cannot listen on 127\.0\.0\.1"):
                ApiServer(MemoryStore(), database, ApiSettings(port=port))
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
            updates.close()  # type: ignore[attr-defined]
        assert "Traceback" not in process.stderr.read()
    assert "listens on loopback only" in invoke("api", "--listen", "0.0.0.0:1", "--no-authentication", code=2).stderr


def test_the_schema_describes_the_job_files(service: Service) -> None:
    schema = json.loads(service.run("schema").stdout)
    jsonschema.Draft202012Validator(schema).validate(job())
