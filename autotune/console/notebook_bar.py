"""A progress bar below the cell of a notebook."""

import importlib
from collections.abc import Mapping
from html import escape
from typing import Any

from rich.progress import TaskID
from rich.text import Text


class NotebookBar:
    """What a listener uses of rich's ``Progress``, which shows nothing in notebooks without ipywidgets."""

    def __init__(self) -> None:
        self._task: dict[str, Any] = {}
        self._display: Any = importlib.import_module("IPython.display")
        self._handle: Any = None

    def start(self) -> None:
        """Show the bar below the cell that runs."""
        self._handle = self._display.display(_output(""), raw=True, display_id=True)

    def stop(self) -> None:
        """Take the bar away."""
        self._handle.update(_output(""), raw=True)

    def add_task(self, description: str, **fields: Any) -> TaskID:
        """Show another task; see ``update`` for its fields."""
        self._task = {"completed": 0, "total": None, "facts": ""}
        self.update(TaskID(0), description=description, **fields)
        return TaskID(0)

    def update(self, task: TaskID, **fields: Any) -> None:
        """Change fields of the task: ``description`` and ``facts``, in rich's markup, ``completed`` and ``total``."""
        self._task |= fields
        parts = [escape(Text.from_markup(self._task[name]).plain) for name in ("description", "facts")]
        share = "" if not self._task["total"] else f' value="{self._task["completed"]}" max="{self._task["total"]}"'
        self._handle.update(_output(f"{parts[0]} <progress{share}></progress> {parts[1]}"), raw=True)

    def remove_task(self, task: TaskID) -> None:
        """Forget the task; the next one takes its place."""


def _output(html: str) -> Mapping[str, str]:
    """Return HTML as an output, of which nothing remains where a notebook is shown as text."""
    return {"text/html": html, "text/plain": ""}
