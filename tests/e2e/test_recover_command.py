"""``autotune recover`` as a user runs it: from a searched job to a verified map, on real kernels."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

JOB = """
name: digits
task: {name: digits-vit}
objectives: [latency_p50_ms, divergence]
search: {choices: [fp32, int8_static, int4_weight_only], trials: 3}
measurement: {repeats: 20, final_repeats: 20, warmup_s: 0, threads: 1}
workers: {pool: inline}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the database of a finished job."""
    found = tmp_path_factory.mktemp("recover")
    (found / "job.yaml").write_text(JOB)
    assert autotune(found, "run", "job.yaml").returncode == 0
    return found


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "autotune.cli.main", *arguments]


def autotune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, env=os.environ | {"COLUMNS": "80"}, capture_output=True, text=True, check=False
    )


def asked(folder: Path, *arguments: str) -> Any:
    """Return what a command prints as JSON."""
    return json.loads(autotune(folder, *arguments, "--json").stdout)


def uniform(folder: Path, choice: str) -> int:
    trials = asked(folder, "front", "last")["baselines"]
    return next(trial["number"] for trial in trials if trial["label"] == f"uniform {choice}")


def test_a_map_in_int4_loses_less_than_a_third_and_holds_in_a_fresh_process(folder: Path) -> None:
    parent = uniform(folder, "int4_weight_only")
    ran = autotune(folder, "recover", "last", "--pick", str(parent))
    assert ran.returncode == 0, ran.stderr
    assert f"is trial {parent} with learned weights" in ran.stderr
    assert max(map(len, ran.stdout.splitlines())) <= 80
    number = int(ran.stderr.split(" is trial")[0].rsplit("Trial ", 1)[1])
    shown = [asked(folder, "show", "last", str(each))["trial"] for each in (parent, number)]
    before, after = (trial["figures"]["divergence"]["value"] for trial in shown)
    assert after < before / 3
    assert shown[1]["figures"]["latency_p50_ms"] == shown[0]["figures"]["latency_p50_ms"]
    assert autotune(folder, "export", "last", "--pick", str(number), "--output", "map.json").returncode == 0
    verified = autotune(folder, "verify", "map.json", "--json")
    rows = json.loads(verified.stdout)["checks"]
    held = {row["metric"]: row["holds"] for row in rows}
    assert held["accuracy"], rows
    assert held["weight_memory_mib"], rows


def test_a_map_that_learning_does_not_help_keeps_its_place(folder: Path) -> None:
    before = [trial["number"] for trial in asked(folder, "front", "last")["front"]]
    ran = autotune(folder, "recover", "last", "--pick", str(uniform(folder, "int8_static")))
    assert ran.returncode == 0, ran.stderr
    # It depends on the last bits which of both it is: shifted images are clipped, whatever the weights.
    assert "keeps the model's own weights: on the validation batches" in ran.stderr or "refused: " in ran.stderr
    assert [trial["number"] for trial in asked(folder, "front", "last")["front"]] == before


def test_wrong_picks_and_times_say_what_to_do(folder: Path) -> None:
    for arguments, code, words in (
        (("--pick", "0"), 8, "recovery learns integer weights, but the map of trial"),
        (("--pick", "77"), 3, "no trial 77"),
        (("--pick", "best"), 2, "promising"),
        (("--time-limit", "soon"), 2, "time_limit_s"),
    ):
        ran = autotune(folder, "recover", "last", *arguments)
        assert words in ran.stderr
        assert ran.returncode == code, (arguments, ran.stderr)


def test_a_job_whose_recovery_was_killed_keeps_its_trials_and_can_go_on(folder: Path) -> None:
    (folder / "again.yaml").write_text(JOB.replace("name: digits\n", "name: again\n"))
    assert autotune(folder, "run", "again.yaml").returncode == 0
    before = asked(folder, "show", "again")["job"]
    parent = uniform(folder, "int4_weight_only")
    running = subprocess.Popen(
        command("recover", "again", "--pick", str(parent), "--epochs", "1000"), cwd=folder, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120.0
    while "Recovering" not in str(asked(folder, "show", "again")["job"]["stage"]):
        assert running.poll() is None
        assert time.monotonic() < deadline, "recovery did not begin"
        time.sleep(0.5)
    running.send_signal(signal.SIGKILL)
    running.wait()
    ran = autotune(folder, "resume", "again")
    assert ran.returncode == 0, ran.stderr
    after = asked(folder, "show", "again")["job"]
    assert (after["state"], after["trials"]) == ("finished", before["trials"])
    assert autotune(folder, "recover", "again", "--pick", str(parent), "--epochs", "1").returncode == 0
