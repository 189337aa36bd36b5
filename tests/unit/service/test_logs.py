import json
import logging
import re
from collections.abc import Iterator

import pytest

from autotune.service import logs

_log = logging.getLogger("autotune.test")


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_lines_say_when_how_bad_and_which_job(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=False, job_id="a1")
    _log.warning("%d workers lost", 2)
    _log.info("another's", extra={"job": "b2", "trial": 7})
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d warning job=a1 2 workers lost", first)
    assert second.endswith("info job=b2 trial=7 another's")


def test_json_logs_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=True)
    _log.info("two\nlines")
    _log.warning("about", extra={"job": "a1", "trial": 3})
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("info", "autotune.test", "two\nlines")
    assert "job" not in first
    assert (second["job"], second["trial"]) == ("a1", 3)
    assert second["time"].endswith("+00:00")


@pytest.mark.parametrize("as_json", [True, False])
def test_an_unexpected_error_keeps_its_traceback(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=as_json)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        _log.exception("broken")
    written = capsys.readouterr().err
    assert "ZeroDivisionError" in (json.loads(written)["traceback"] if as_json else written)


def test_other_libraries_only_warn(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=False)
    logging.getLogger("elsewhere").info("chatter")
    logging.getLogger("elsewhere").warning("trouble")
    assert "chatter" not in (written := capsys.readouterr().err)
    assert "trouble" in written
