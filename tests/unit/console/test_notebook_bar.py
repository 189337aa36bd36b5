"""Progress in a notebook: HTML that changes in place below the cell."""

import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.console import output
from autotune.console.progress import ConsoleListener
from autotune.jobs.progress import Progress
from autotune.jobs.records import JobStage


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stood below the cell, one entry per change."""
    pages: list[str] = []

    class Handle:
        def update(self, content: Mapping[str, str], *, raw: bool) -> None:
            assert raw
            assert content.keys() == {"text/html", "text/plain"}
            assert content["text/plain"] == "", "a notebook shown as text has no rest of the bar"
            pages.append(content["text/html"])

    def display(content: Mapping[str, str], *, raw: bool, display_id: bool) -> Any:
        assert display_id
        handle = Handle()
        handle.update(content, raw=raw)
        return handle

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr(output.err, "is_jupyter", True)
    return pages


def test_a_notebook_shows_the_steps_of_a_stage_and_then_the_trials(shown: list[str]) -> None:
    with ConsoleListener("latency_p50_ms") as listener:
        listener.step(JobStage(name="Calibrating", done=1, total=4))
        assert shown[-1] == 'Calibrating <progress value="1" max="4"></progress> 1/4'
        listener.stage("Searching")
        assert shown[-1] == "Searching <progress></progress> "
        listener.trial(Progress(done=2, budget=10, elapsed_s=1.0, remaining_s=65.0, best=None, front_size=0))
        assert shown[-1] == (
            'Searching <progress value="2" max="10"></progress> 2/10 · none feasible yet · front 0 · 1:05 left'
        )
    assert shown[-1] == ""


def test_text_in_a_notebook_is_not_markup(shown: list[str]) -> None:
    with ConsoleListener() as listener:
        listener.stage("Waiting for [red] <b>")
        assert shown[-1].startswith("Waiting for [red] &lt;b&gt; <progress")
