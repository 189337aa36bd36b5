"""The common interface of image classifiers from all libraries."""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import nn

from workers.errors import TaskError
from workers.tasks.checkpoints import quiet_transformers
from workers.tasks.images.shape_images import Pixels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vision:
    """An image classifier: its model, inputs and outputs."""

    #: Returns the model in fp32.
    build: Callable[[], nn.Module]
    #: Model, inputs -> logits, shape ``(pictures, classes)``.
    logits: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    #: Pictures -> inputs, shape ``(pictures, 3, height, width)``.
    prepared: Callable[[Sequence[Pixels]], torch.Tensor]
    #: Names of the classes, in the order of the logits.
    labels: tuple[str, ...]


def called(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model that takes and returns one tensor."""
    logits: torch.Tensor = model(inputs)
    return logits


@contextlib.contextmanager
def loading(checkpoint: str, remedy: str) -> Iterator[None]:
    """Build a model and load its weights in this context, silently and without changing the random state.

    Args:
        checkpoint: the checkpoint's name in the job.
        remedy: way out, for the error message.

    Raises:
        TaskError: if the model cannot be loaded.
    """
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            yield
    except TaskError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError, pickle.PickleError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TaskError(f"cannot load the model of checkpoint {checkpoint!r}: {first}; {remedy}") from None
