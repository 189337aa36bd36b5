"""The wheel: what users install."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = {"autotune", "search_spaces", "workers", "dashboard"}


def test_wheel_holds_the_four_packages_and_nothing_else(wheel: Path) -> None:
    names = {path.name for path in zipfile.Path(wheel).iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == PACKAGES


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    # Data files such as migrations, templates and py.typed are lost silently when a pattern misses them.
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sources = {name for name in listing.split("\0") if name and (ROOT / name).exists()}
    assert sources - set(zipfile.ZipFile(wheel).namelist()) == set()


@pytest.mark.parametrize("name", sorted(PACKAGES - {"autotune"}))
def test_another_package_of_the_same_name_is_found_at_import(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").touch()
    command = [sys.executable, "-c", "import autotune"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert f"needs its own package {name!r} in '{ROOT}', but Python finds '{tmp_path}/{name}.py'" in found.stderr
