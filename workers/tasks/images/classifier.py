"""What image classifiers of every library have in common."""

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
    """An image classifier: its model, and what that takes and says."""

    #: Return the model in fp32.
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
    """Build a model and load its weights in this context, quietly; random numbers stay as they were.

    Args:
        checkpoint: as the job names it.
        remedy: what to give instead, for messages.

    Raises:
        TaskError: if it cannot be loaded.
    """
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            yield
    except TaskError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError, pickle.PickleError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TaskError(f"cannot load the model of checkpoint {checkpoint!r}: {first}; {remedy}") from None
