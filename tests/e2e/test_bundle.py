"""A front from a job to a process that serves all of its maps, through the real command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import autotune
from workers.task import Split
from workers.tasks import build_task

COMMAND = str(Path(sys.executable).with_name("autotune"))
JOB: dict[str, Any] = {
    "name": "digits",
    "task": {"name": "digits-vit"},
    # Both are equal in every run, so that the front does not depend on the load of the machine.
    "objectives": ["weight_memory_mib", "divergence"],
    "search": {"trials": 10, "choices": ["fp32", "int8_static", "int8_dynamic", "int4_weight_only"]},
    "measurement": {"repeats": 20, "final_repeats": 20, "warmup_s": 0.0, "threads": 1},
    "workers": {"pool": "inline"},
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundle")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """Run the command in the folder of a finished job, and check how it ends."""

    def invoke(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "AUTOTUNE_DATABASE"}
        done = subprocess.run(
            [COMMAND, *arguments], cwd=folder, env=environment | {"COLUMNS": "80"}, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    invoke("run", "job.yaml")
    return invoke


def test_the_maps_of_a_front_are_served_together(run: Run, folder: Path) -> None:
    front = json.loads(run("front", "last", "--json").stdout)
    said = run("bundle", "last").stderr
    assert len(front["front"]) > 1
    assert f"Wrote {len(front['front'])} maps" in said
    task = build_task("digits-vit", {})
    governed = autotune.load_bundle(folder / "bundle").govern(task.build_model())
    assert set(governed) == {trial["number"] for trial in front["front"]}
    assert governed.recommended == front["recommended"]
    batch = task.evaluation(Split.EVALUATION)[0]
    with torch.inference_mode():
        for number, model in governed.items():
            run("export", "last", "--pick", str(number), "--output", f"{number}.json")
            alone = autotune.load_map(folder / f"{number}.json").apply(task.build_model())
            assert torch.equal(task.forward(model, batch), task.forward(alone, batch))
    bound = json.loads((folder / "bundle" / "bundle.json").read_text())["weight_bytes"]
    assert governed.weight_bytes() <= bound


def test_a_limit_leaves_maps_out_and_says_which(run: Run, folder: Path) -> None:
    whole = json.loads(run("bundle", "last", "--output", "whole", "--json").stdout)["bundle"]
    figures = whole["maps"][str(whole["recommended"])]["figures"]
    least = figures["weight_memory_mib"]["value"] + 1e-5
    done = run("bundle", "last", "--output", "small", "--max-mib", str(least))
    assert "it does not fit into the limit" in done.stderr
    small = autotune.load_bundle(folder / "small").file
    assert small.recommended in small.maps
    assert small.weight_bytes <= least * (1 << 20)
    assert len(small.maps) + len(small.left_out) == len(whole["maps"])
    refused = run("bundle", "last", "--max-mib", "0.01", "--output", "none", code=8)
    assert "raise --max-mib" in refused.stderr


def test_a_job_that_does_not_exist_is_named(run: Run) -> None:
    assert "nowhere" in run("bundle", "nowhere", code=3).stderr
