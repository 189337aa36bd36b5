"""The wheel: what users install."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = {"autotune", "search_spaces", "workers", "dashboard"}
#: What the wheel is built from; the image copies no more either.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", *sorted(PACKAGES))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """A wheel built in a copy, so that the checkout keeps no build folder."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in SOURCES:
        subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(wheels), str(source)]
    subprocess.run(command, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (built,) = wheels.iterdir()
    return zipfile.Path(built)


def test_wheel_holds_the_four_packages_and_nothing_else(wheel: zipfile.Path) -> None:
    names = {path.name for path in wheel.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == PACKAGES


def test_wheel_holds_every_file_of_the_packages(wheel: zipfile.Path) -> None:
    # Data files such as migrations, templates and py.typed are lost silently when a pattern misses them.
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sources = {name for name in listing.split("\0") if name and (ROOT / name).exists()}
    assert sources - set(wheel.root.namelist()) == set()
