"""The wheel in a fresh environment, as users install it: without the checkout, and without extras."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Installing PyTorch and Ray takes minutes where disks are slow.
pytestmark = pytest.mark.timeout(900)

Run = Callable[..., str]

#: What the README takes as given.
GIVEN = """
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
batches = list(torch.randn(8, 32, 64))
with torch.no_grad():
    labels = [model(batch).argmax(-1) for batch in batches]
"""


@pytest.fixture(scope="module")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a program of the environment in an empty folder, and return what it printed."""
    folder, home = tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("home")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    subprocess.run([*install, "-c", ROOT / "constraints.txt", wheel], check=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "AUTOTUNE_DATABASE")}

    def run(program: str, *arguments: str) -> str:
        command = [folder / "bin" / program, *arguments]
        done = subprocess.run(
            command, cwd=home, env=environment | {"HOME": str(home)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_first_lines_of_the_readme_run(run: Run) -> None:
    (snippet, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    printed = run("python", "-c", GIVEN + snippet.replace('budget="5 min"', 'budget="30 s"'))
    assert printed.startswith("Recommended: ")
    assert "minilm" not in run("autotune", "jobs")


def test_the_command_line_runs(run: Run) -> None:
    assert re.fullmatch(r"quant-autotune \d+\.\d+\.\d+\n", run("autotune", "--version"))
    assert "torch" in run("autotune", "doctor")
