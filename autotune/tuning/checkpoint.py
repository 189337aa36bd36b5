"""The job of a checkpoint: its task is known by its architecture."""

import dataclasses
import os
from os import PathLike
from pathlib import Path

from autotune.jobs.spec import JobSpec
from autotune.metrics.catalog import percentiles_of
from autotune.tuning.inputs import Inputs
from autotune.tuning.job import Settings, job_of
from workers.errors import TaskError
from workers.tasks.recognition import recognized

#: The task whose windows depend on the time limit; its usual number of them, the fewest, and the tokens of each.
_LANGUAGE_MODEL, _USUAL_WINDOWS, _FEWEST_WINDOWS, _TOKENS = "causal-lm", 64, 16, 64
#: Bytes of a parameter in checkpoints, which have from 0.6 in GGUF to 4; and operations of a slow processor per second.
_BYTES_PER_PARAMETER, _OPERATIONS_PER_S = 2.0, 5e10
#: Share of the time limit that one pass over the windows may take.
_PASS_SHARE = 0.02


def checkpoint_job(checkpoint: str, data: str | None, settings: Settings, *, name: str | None = None) -> JobSpec:
    """Return the job of a checkpoint.

    Args:
        checkpoint: a folder, a GGUF file, or a name on the hub.
        data: path of the data that the task runs on; None for the task's own.
        settings: of the search.
        name: name of the job; None takes that of the checkpoint.

    Raises:
        TaskError: if no built-in task is for the checkpoint, or the data are missing or unknown to its task.
        JobSpecError: if the result is not a valid job.
    """
    known = recognized(checkpoint)
    if data is None and known.needs_data:
        raise TaskError(f"{checkpoint!r} is for the task {known.task}, which needs data: {known.content}")
    if data is not None and not known.data:
        raise TaskError(f"{checkpoint!r} is for the task {known.task}, which takes no data, but got {data!r}")
    if data is not None and not Path(data).exists():
        raise TaskError(f"there is no file or folder {data!r}; the task {known.task} takes {known.content}")
    parameters = {"checkpoint": checkpoint} | ({known.data: data} if data is not None else {})
    objectives = (percentiles_of(known.workload)[50].name, "divergence")

    def job(**more: object) -> JobSpec:
        task = {"name": known.task, "parameters": parameters | more}
        return job_of(name or _name_of(checkpoint), task, settings, objectives)

    spec = job()
    windows = _affordable_windows(checkpoint, spec.search.time_limit_s) if known.task == _LANGUAGE_MODEL else None
    return spec if windows is None or "windows" in spec.task.parameters else job(windows=windows)


def _affordable_windows(checkpoint: str, limit_s: float | None) -> int | None:
    """Return how many windows of text the time limit of a language model's job allows; None for the task's own number.

    Every map is evaluated on all windows. On a slow processor, the many of a long job would leave a short one no time
    for a second map.

    Args:
        checkpoint: a folder or file, whose size tells how long a window takes; a name on the hub tells nothing.
        limit_s: time limit in seconds; None if there is none.
    """
    files = [Path(checkpoint)] if Path(checkpoint).is_file() else list(Path(checkpoint).glob("*.safetensors"))
    parameters = sum(file.stat().st_size for file in files) / _BYTES_PER_PARAMETER
    if not parameters or limit_s is None:
        return None
    # Two operations per parameter and token.
    window_s = 2.0 * parameters * _TOKENS / _OPERATIONS_PER_S
    most = int(_PASS_SHARE * limit_s / window_s) // _FEWEST_WINDOWS * _FEWEST_WINDOWS
    return None if most >= _USUAL_WINDOWS else max(_FEWEST_WINDOWS, most)


def _name_of(checkpoint: str) -> str:
    """Return the last part of a path or a name on the hub, which may have dots, such as ``Llama-3.2-1B``."""
    return Path(os.path.abspath(checkpoint)).name.removesuffix(".gguf")  # noqa: PTH100 - a link has a name of its own


def data_of(inputs: Inputs) -> str | None:
    """Return the path of a checkpoint's data; None for those of its task.

    Raises:
        TaskError: if anything else is given, because the task has its own labels and metric.
    """
    others = [field for field in dataclasses.fields(inputs) if field.name != "batches"]
    given = [field.name for field in others if getattr(inputs, field.name) is not field.default]
    if given or not isinstance(inputs.batches, str | PathLike | None):
        wrong = [*given, "batches"][0]
        raise TaskError(
            f"a checkpoint's task has its own inputs, labels and metric, but got {wrong}; pass the path of its data "
            "only, or load the model and pass it instead of the checkpoint"
        )
    return None if inputs.batches is None else os.fspath(inputs.batches)
