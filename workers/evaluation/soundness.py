"""Checks of a task and its model before anything is measured: without them, figures could mean nothing."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from search_spaces.layer import Layer
from search_spaces.tensors import replaced, tensors_in
from workers import quality
from workers.errors import TaskError
from workers.model.prepared import slots
from workers.task import Batch, Task

#: Largest divergence of full precision from itself. Sums in another order, as on GPUs, cause less.
_MOST_APART = 1e-5


def check_full_precision(task: Task, model: nn.Module, batch: Batch) -> None:
    """Check that full precision repeats itself: every map is compared with what it returned once.

    Raises:
        TaskError: if the batch has no samples, or the model changes its input in place, returns other outputs the
            second time, or returns a single value per sample, whose divergence is always 0.
    """
    kept = replaced(batch, torch.clone)
    first = quality.outputs_on(task, model, [batch])
    if not len(first):
        raise TaskError("the first evaluation batch has no samples; leave out empty batches")
    if not all(map(_equal, tensors_in(batch), tensors_in(kept))):
        raise TaskError(
            "the model changes its input in place, so every pass over a batch sees other data; clone the input in the "
            "model, or in the task's forward"
        )
    if first.shape[-1] == 1:
        raise TaskError(
            f"outputs must have at least two features, but got shape {tuple(first.shape)}: the divergence of "
            f"{task.output_kind} with one value is always 0; return several values per sample, for example the outputs "
            "of an earlier layer"
        )
    second = quality.outputs_on(task, model, [batch])
    if _equal(first, second):
        return
    apart = float(quality.divergence(second, first, task.output_kind).mean())
    if not apart <= _MOST_APART:
        raise TaskError(
            f"full precision does not repeat itself: two passes over one batch diverge by {apart:.1e}, but at most "
            f"{_MOST_APART:.0e} is allowed. Likely causes are dropout that is on in evaluation, or sampling without a "
            "fixed seed"
        )


def without_uncalled(
    model: nn.Module, layers: Sequence[Layer], passes: Iterable[Callable[[], object]]
) -> tuple[Layer, ...]:
    """Return ``layers`` in which those are frozen whose replacement would not run.

    A model may call a layer by another reference than the name it is registered by, such as a Python list. A map would
    then be installed without any effect.

    Args:
        model: whose layers are replaced for one pass, and restored.
        layers: its layers.
        passes: run the model. Every layer that is not frozen is called in one of them; passes are taken only while such
            a call is missing.
    """
    originals = {layer.name: model.get_submodule(layer.name) for layer in layers if layer.frozen_reason is None}
    called: set[str] = set()
    twins = {name: _twin(module, functools.partial(called.add, name)) for name, module in originals.items()}
    places = slots(model, originals)
    try:
        for name, twin in twins.items():
            for children, attribute in places[name]:
                children[attribute] = twin
        with torch.inference_mode():
            for run in passes:
                run()
                if len(called) == len(twins):
                    break
    finally:
        for name, module in originals.items():
            for children, attribute in places[name]:
                children[attribute] = module
    reasons = {name: _uncalled_reason(model, originals[name]) for name in originals.keys() - called}
    return tuple(replace(layer, frozen_reason=reasons.get(layer.name, layer.frozen_reason)) for layer in layers)


def _twin(module: nn.Module, called: Callable[[], None]) -> nn.Module:
    """Return a module of the same type, with the same tensors and settings as ``module``, that reports its calls."""
    twin = copy.copy(module)
    twin._forward_pre_hooks = OrderedDict()  # the copy would share the module's own
    twin.register_forward_pre_hook(lambda *_: called())
    return twin


def _uncalled_reason(model: nn.Module, layer: nn.Module) -> str:
    held = next(_holders(model, layer), None)
    by = f"by {held}" if held else "by a reference of its own"
    return f"the model calls it {by} rather than by its registered name, so a replacement would never run"


def _holders(model: nn.Module, layer: nn.Module) -> Iterator[str]:
    """Yield the names of the attributes whose lists, tuples or mappings hold ``layer``."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
            if not attribute.startswith("_") and any(part is layer for part in parts):
                yield f"{name}.{attribute}".lstrip(".")


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal, nan included."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
