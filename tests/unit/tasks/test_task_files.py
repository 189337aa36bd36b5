"""Task files: what they may import, and what they must not do."""

import sys
from pathlib import Path

import pytest

from workers.errors import PoolError, TaskError
from workers.pools.failure import starting
from workers.tasks import build_task, load_task_file


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def written(folder: Path, text: str, name: str = "task.py") -> str:
    Path(folder, name).write_text(text, encoding="utf-8")
    return str(Path(folder, name))


def test_a_task_file_imports_its_neighbours_at_once_and_later(tmp_path: Path) -> None:
    written(tmp_path, "WIDTH = 64\n", "neighbour_at_once.py")
    written(tmp_path, "HEIGHT = 32\n", "neighbour_later.py")
    load_task_file(
        written(
            tmp_path,
            "import neighbour_at_once\nfrom workers.tasks import register\n"
            "@register('imports-neighbours')\ndef task():\n"
            "    import neighbour_later\n    return neighbour_at_once.WIDTH * neighbour_later.HEIGHT\n",
        )
    )
    assert build_task("imports-neighbours", {}) == 64 * 32


def test_a_neighbour_shadows_no_installed_module(tmp_path: Path) -> None:
    written(tmp_path, "raise AssertionError('shadows')\n", "colorsys.py")
    sys.modules.pop("colorsys", None)
    load_task_file(written(tmp_path, "import colorsys\n"))


@pytest.mark.parametrize("code", ["", "0", "'bye'"])
def test_a_task_file_that_ends_the_process_is_refused(tmp_path: Path, code: str) -> None:
    with pytest.raises(TaskError, match=r"ends the process by sys.exit\(.*__name__"):
        load_task_file(written(tmp_path, f"import sys\nsys.exit({code})\n"))


def test_a_task_that_ends_the_process_fails_like_any_other() -> None:
    with pytest.raises(PoolError, match="could not start: SystemExit: 0"), starting(None):
        sys.exit(0)
