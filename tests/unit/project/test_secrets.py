"""Secrets by reference: they reach the task, and nothing else."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from autotune.api.app import create_app
from autotune.api.settings import ApiSettings
from autotune.errors import JobSpecError
from autotune.jobs.spec import JobSpec
from autotune.store.open import open_store
from workers.errors import TaskError
from workers.secret_values import resolved
from workers.tasks import build_task, load_task_file

COMMAND = str(Path(sys.executable).with_name("autotune"))
CANARY = "c4n4ry-0f-a-s3cret"

TASK_FILE = """
import logging, sys
from dataclasses import dataclass
sys.path.insert(0, {folder!r})
import fragile_task
from workers.tasks import register

@register("guarded")
@dataclass(frozen=True)
class Guarded(fragile_task.Fragile):
    password: str = ""
    url: str = ""

    def build_model(self):
        assert self.password == {canary!r}
        assert self.url == "https://ann:{canary}@host"
        return super().build_model()
"""


def spec(**parameters: Any) -> dict[str, Any]:
    return {
        "name": "guarded",
        "task": {"name": "guarded", "parameters": parameters},
        "objectives": ["latency_p50_ms", "divergence"],
        "search": {"trials": 3, "sampler": "random"},
        "measurement": {"repeats": 20, "final_repeats": 20, "warmup_s": 0.0, "threads": 1},
        "workers": {"pool": "inline"},
    }


@pytest.mark.parametrize(
    "parameters",
    [
        {"password": CANARY},
        {"api_key": CANARY},
        {"apiKey": CANARY},
        {"hubToken": CANARY},
        {"AWS_SECRET_ACCESS_KEY": CANARY},
        {"db-password": 1234},
        {"nested": [{"client_secret": CANARY}]},
        {"token": [CANARY]},
    ],
)
def test_secrets_themselves_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(JobSpecError, match=r"task\.parameters: .*write \$\{secret:NAME\}") as caught:
        JobSpec.parse(spec(**parameters))
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "parameters",
    [
        {"password": "${secret:DB}"},
        {"password": None, "token": True},
        {"max_tokens": 128, "tokenizer": "words", "latency_tokens": [128], "keys": "a"},
        {"url": "https://ann:${secret:DB}@host"},
    ],
)
def test_references_and_other_parameters_are_taken(parameters: dict[str, Any]) -> None:
    assert JobSpec.parse(spec(**parameters)).task.parameters == parameters


@pytest.mark.parametrize("reference", ["${secret:}", "${secret:../x}", "${secret:a b}", "${secret:A", "${secret:1}"])
def test_malformed_references_are_refused(reference: str) -> None:
    with pytest.raises(JobSpecError, match="a reference to a secret must be"):
        JobSpec.parse(spec(url=reference))


def test_a_secret_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "FILED").write_text("from file\n")
    monkeypatch.setenv("AUTOTUNE_SECRETS", str(tmp_path))
    monkeypatch.setenv("AUTOTUNE_SECRET_SET", "from variable")
    assert resolved({"a": ["${secret:FILED}", 1], "b": "x-${secret:SET}"}) == {
        "a": ["from file", 1],
        "b": "x-from variable",
    }
    for name in ("GONE", "../FILED", "/etc/passwd"):
        with pytest.raises(TaskError, match="not known to this worker; set AUTOTUNE_SECRET_"):
            resolved(f"${{secret:{name}}}")


def test_a_canary_reaches_the_task_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(Path(__file__).parents[2] / "data")
    (tmp_path / "task.py").write_text(TASK_FILE.format(folder=folder, canary=CANARY))
    job = spec(password="${secret:DB}", url="https://ann:${secret:DB}@host")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    monkeypatch.setenv("AUTOTUNE_SECRET_DB", CANARY)
    monkeypatch.delenv("AUTOTUNE_DATABASE", raising=False)

    def run(*arguments: str) -> str:
        command = [COMMAND, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    printed = run("run", "job.yaml", "--task-file", "task.py", "--json")
    printed += run("show", "last", "--json") + run("export", "last", "--json")
    database = (tmp_path / "autotune.db").read_bytes() + (tmp_path / "map.json").read_bytes()
    assert b"${secret:DB}" in database
    store = open_store(f"sqlite:///{tmp_path / 'autotune.db'}")
    caplog.set_level(logging.DEBUG)
    with TestClient(
        create_app(store, ApiSettings(authentication=False), lambda: None), base_url="http://localhost"
    ) as http:
        job_id = http.get("/v1/find-job?reference=last").json()["id"]
        for path in ("", "/trials", "/events", "/map", "/progress", "/fronts"):
            answered = http.get(f"/v1/jobs/{job_id}{path}")
            assert answered.status_code == 200
            printed += answered.text
    store.close()
    wal = b"".join(path.read_bytes() for path in tmp_path.glob("autotune.db*"))
    assert CANARY.encode() not in database + wal
    assert CANARY not in printed + caplog.text + json.dumps(job)


def test_a_task_gets_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    load_task_file(str(Path(__file__).parents[2] / "data" / "fragile_task.py"))
    monkeypatch.setenv("AUTOTUNE_SECRET_MARKS", CANARY)
    assert build_task("fragile", {"marks": "${secret:MARKS}"}).marks == CANARY
