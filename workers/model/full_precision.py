"""The full-precision model of a task, as its layers are measured and replaced."""

from torch import nn

from workers.errors import TaskError
from workers.model.compiled import uncompiled
from workers.model.fingerprint import fingerprint
from workers.model.parametrizations import without_parametrizations
from workers.task import Task


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


def in_evaluation_mode(model: object) -> nn.Module:
    """Return the model that a task built, in evaluation mode.

    Raises:
        TaskError: if it is no module, or an exported program, which has no layers that could be replaced.
    """
    exported = type(model).__name__ == "ExportedProgram"
    if not isinstance(model, nn.Module) and not exported:
        raise TaskError(f"a task must build an nn.Module, but this one built a {type(model).__name__}")
    try:
        if isinstance(model, nn.Module):
            return model.eval()
    except NotImplementedError:  # what a module of torch.export raises
        pass
    raise TaskError(
        "the task builds an exported program (torch.export), which has no layers that could be replaced; build the "
        "nn.Module that it was exported from"
    )


def _built(task: Task) -> nn.Module:
    return uncompiled(in_evaluation_mode(task.build_model()))
