"""The full-precision model of a task, as its layers are measured and replaced."""

from torch import nn

from workers.model.compiled import uncompiled
from workers.model.fingerprint import fingerprint
from workers.model.parametrizations import without_parametrizations
from workers.task import Task, in_evaluation_mode


def full_precision_model(task: Task) -> nn.Module:
    """Return the task's model in evaluation mode, uncompiled and without parametrizations.

    Raises:
        TaskError: if the task builds anything but a module with layers.
    """
    return without_parametrizations(_built(task))


def identified_model(task: Task) -> tuple[nn.Module, str]:
    """Return ``full_precision_model`` and the fingerprint of the model as the task builds it.

    The fingerprint is that of the model with its parametrizations, which is the identity of a user's own copy.

    Raises:
        TaskError: if the task builds anything but a module with layers.
    """
    built = _built(task)
    identity = fingerprint(built)
    return without_parametrizations(built), identity


def _built(task: Task) -> nn.Module:
    return uncompiled(in_evaluation_mode(task.build_model()))
