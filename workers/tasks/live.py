"""Tasks that are objects of this process, such as a model in a notebook, and have no class that another could build."""

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workers.errors import TaskError

if TYPE_CHECKING:
    from workers.task import Task

#: Name of all of them in job files; the parameter ``model`` tells them apart.
LIVE = "live-model"

_held: "dict[str, Task]" = {}


def hold(task: "Task", label: str) -> dict[str, Any]:
    """Keep a task until this process ends, and return the parameters by which job files name it."""
    model = f"{label}-{secrets.token_hex(4)}"
    _held[model] = task
    return {"model": model}


def carry(task: "Task", parameters: Mapping[str, Any]) -> None:
    """Keep a task that another process holds by ``parameters``."""
    _held[parameters["model"]] = task


def held_task(model: str) -> "Task":
    """Return the task of a live model.

    Raises:
        TaskError: if another process holds it.
    """
    if model not in _held:
        raise TaskError(
            f"the model {model!r} is an object of the process that tuned it, so no other process can build it or has "
            "its data. Verify its map and its exports there, with verify() and verify_export(folder) of the map, or "
            "tune again there. A program that has the model applies a saved map with "
            "autotune.load_map(path).apply(model). For the command line, write a task file and tune with it"
        )
    return _held[model]
