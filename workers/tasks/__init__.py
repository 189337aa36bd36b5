"""Registered tasks: job files name a task, never a module to import.

A package adds tasks with the entry point group ``autotune.tasks`` (name -> class); a script adds
them with the decorator ``register``.
"""

import importlib
import inspect
import json
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import unknown
from workers.errors import TaskError
from workers.secret_values import resolved

if TYPE_CHECKING:
    from workers.task import Task

#: Builds a task from the parameters of a job file.
TaskFactory = Callable[..., "Task"]

ENTRY_POINT_GROUP = "autotune.tasks"

#: Built-in tasks: name -> module and class. Imported on use, to keep this module light.
_BUILT_IN = {
    "minilm-lee": "workers.tasks.text.minilm_lee:MiniLMLee",
    "digits-cnn": "workers.tasks.images.digits:DigitsCNN",
    "digits-vit": "workers.tasks.images.digits:DigitsViT",
    "causal-lm": "workers.tasks.text.causal_lm:CausalLM",
    "diffusion": "workers.tasks.diffusion.denoising:Diffusion",
    "image-classification": "workers.tasks.images.classification:ImageClassification",
    "text-to-image": "workers.tasks.diffusion.text_to_image:TextToImage",
    "speech-seq2seq": "workers.tasks.speech.seq2seq:SpeechSeq2Seq",
}
#: Tasks that only a program can name.
_UNLISTED = {"live-model": "workers.tasks.live:held_task"}
_registered: dict[str, TaskFactory] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """Description of a task for users."""

    name: str
    #: First line of the class's docstring.
    summary: str
    #: Parameter name -> default, JSON-ready; None also where there is no default.
    parameters: Mapping[str, Any]


def register(name: str) -> Callable[[TaskFactory], TaskFactory]:
    """Return a decorator that registers a task class as ``name``.

    Raises:
        TaskError: if another class is registered under that name.
    """

    def decorate(factory: TaskFactory) -> TaskFactory:
        taken = name in _BUILT_IN | _UNLISTED or _registered.get(name, factory).__qualname__ != factory.__qualname__
        if taken:
            raise TaskError(f"a task named {name!r} is already registered; choose another name")
        _registered[name] = factory
        return factory

    return decorate


def task_names() -> tuple[str, ...]:
    """Return the names of all registered tasks, sorted."""
    return tuple(sorted({*_BUILT_IN, *_registered, *(point.name for point in _entry_points())}))


def task_info(name: str) -> TaskInfo:
    """Return the description of the task called ``name``.

    Raises:
        TaskError: if no task has that name.
    """
    factory = _factory(name)
    parameters = {p.name: _json_ready(p.default) for p in inspect.signature(factory).parameters.values()}
    summary = (inspect.getdoc(factory) or "").partition("\n")[0]
    return TaskInfo(name=name, summary=summary, parameters=parameters)


def list_tasks() -> list[TaskInfo]:
    """Return the descriptions of all registered tasks, by name."""
    return [task_info(name) for name in task_names()]


def build_task(name: str, parameters: Mapping[str, Any]) -> "Task":
    """Return the task called ``name`` with the given parameters, in which secrets replace their references.

    Raises:
        TaskError: if no task has that name, it has no such parameter, or this worker does not have a secret.
    """
    factory = _factory(name)
    known = inspect.signature(factory).parameters
    for parameter in parameters:
        if parameter not in known:
            raise TaskError(unknown(f"parameter of task {name!r}", parameter, known))
    return factory(**resolved(dict(parameters)))


def load_task_file(path: str) -> None:
    """Run the Python file ``path``, which registers tasks. It runs with the caller's rights.

    The file and the tasks can import modules of its folder, except by names that installed modules have.

    Raises:
        TaskError: if the file cannot be read, raises an error or ends the process.
    """
    folder = str(Path(path).absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that nothing in the folder shadows an installed module
    try:
        runpy.run_path(path, run_name="autotune_task_file")
    except TaskError:
        raise
    except SystemExit as error:
        raise TaskError(
            f"task file {path!r} ends the process by sys.exit({error.code!r}), but it should only register tasks; put "
            'what runs as a script under: if __name__ == "__main__"'
        ) from error
    except Exception as error:
        raise TaskError(f"task file {path!r} cannot be run: {type(error).__name__}: {error}") from error


def _json_ready(default: object) -> Any:
    if default is inspect.Parameter.empty:
        return None
    try:
        return json.loads(json.dumps(default, allow_nan=False))
    except (TypeError, ValueError):
        return repr(default)


def _factory(name: str) -> TaskFactory:
    if name in _registered:
        return _registered[name]
    if name in (known := _BUILT_IN | _UNLISTED):
        module, _, attribute = known[name].partition(":")
        factory: TaskFactory = getattr(importlib.import_module(module), attribute)
        return factory
    for point in _entry_points():
        if point.name == name:
            loaded: TaskFactory = point.load()
            return loaded
    raise TaskError(f"{unknown('task', name, task_names())}. Register your own with --task-file")


def _entry_points() -> metadata.EntryPoints:
    return metadata.entry_points(group=ENTRY_POINT_GROUP)
