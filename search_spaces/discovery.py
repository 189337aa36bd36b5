"""Find the quantizable layers of a PyTorch model by running it once."""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from search_spaces.fusion import fusion_group
from search_spaces.layer import Layer, LayerKind
from search_spaces.tensors import layer_input, tensors_in

_KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Linear: LayerKind.LINEAR,
    nn.Conv1d: LayerKind.CONV1D,
    nn.Conv2d: LayerKind.CONV2D,
    nn.ConvTranspose1d: LayerKind.CONV_TRANSPOSE1D,
    nn.ConvTranspose2d: LayerKind.CONV_TRANSPOSE2D,
    nn.Embedding: LayerKind.EMBEDDING,
    nn.EmbeddingBag: LayerKind.EMBEDDING_BAG,
    nn.LSTM: LayerKind.LSTM,
    nn.GRU: LayerKind.GRU,
}


def discover(
    model: nn.Module,
    run: Callable[[nn.Module], object],
    more: Iterable[Callable[[nn.Module], object]] = (),
) -> tuple[Layer, ...]:
    """Return the quantizable layers of ``model`` in execution order, those that never ran last.

    Args:
        model: the full-precision model; its hooks are restored before the call returns.
        run: runs the model on one example batch.
        more: run it on further batches, one each. They are taken only while a layer has not run yet, such as an expert
            that no sample of the earlier batches was sent to.
    """
    modules = {name: module for name, module in model.named_modules() if kind_of(module)}
    elsewhere = _reasons_elsewhere(model, modules)
    bypassed = _bypassed(model)
    # A hook on a bypassed layer would make PyTorch call it, perhaps with nested tensors.
    trace = _traced({name: module for name, module in modules.items() if name not in bypassed}, lambda: run(model))
    batches = 1
    for again in more:
        if not (idle := modules.keys() - trace.calls.keys() - elsewhere.keys()):
            break
        trace.add(_traced({name: modules[name] for name in modules if name in idle}, functools.partial(again, model)))
        batches += 1
    reasons = _idle_reasons(modules, modules.keys() - trace.calls.keys(), lambda: run(model), batches) | elsewhere
    layers = [
        _layer(name, module, trace, reasons.get(name) or _unusual(name, module)) for name, module in modules.items()
    ]
    never_ran = len(trace.first_call)
    layers.sort(key=lambda layer: trace.first_call.get(layer.name, never_ran))
    return tuple(replace(layer, order=order) for order, layer in enumerate(layers))


def skipped(model: nn.Module) -> dict[str, str]:
    """Return name -> why a module's weights stay in full precision, for modules that are not quantizable layers.

    Only parameters that the module itself holds, with two or more dimensions, count as weights. The model itself is
    named ``(model)``.
    """
    return {
        name or "(model)": _no_layer(module)
        for name, module in model.named_modules()
        if kind_of(module) is None and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    }


def with_latency_shapes(
    model: nn.Module, layers: Sequence[Layer], passes: Sequence[Callable[[], object]]
) -> tuple[Layer, ...]:
    """Return ``layers`` with the shapes of their inputs in ``passes``, the passes whose latency is measured.

    Args:
        model: the model that the passes run.
        layers: its layers.
        passes: each contributes the shape of the first input it gives a layer.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {layer.name: [] for layer in layers}
    modules = {layer.name: model.get_submodule(layer.name) for layer in layers if layer.frozen_reason is None}
    for run in passes:
        for name, shape in _traced(modules, run).input_shape.items():
            shapes[name].append(shape)
    return tuple(replace(layer, latency_shapes=tuple(dict.fromkeys(shapes[layer.name]))) for layer in layers)


def _no_layer(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return "PyTorch reads the weights of nn.MultiheadAttention without calling layers that could be replaced"
    if isinstance(module, tuple(_KINDS)):
        return f"{type(module).__name__} overrides forward, and a replacement would not run that code"
    return f"no quantized kernel replaces {type(module).__name__}"


class _Trace:
    """Shapes and counts gathered by forward hooks."""

    def __init__(self) -> None:
        self.first_call: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.flops: dict[str, int] = {}
        self.input_shape: dict[str, tuple[int, ...]] = {}

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.first_call.setdefault(name, len(self.first_call))
            taken, returned = layer_input(args, kwargs), next(tensors_in(output))
            self.input_shape.setdefault(name, tuple(taken.shape))
            self.calls[name] = self.calls.get(name, 0) + 1
            self.flops[name] = self.flops.get(name, 0) + _flops(module, taken, returned)

        return record

    def add(self, later: "_Trace") -> None:
        """Add the trace of other layers in a later pass."""
        first = len(self.first_call)
        self.first_call |= {name: first + order for name, order in later.first_call.items()}
        self.calls |= later.calls
        self.flops |= later.flops
        self.input_shape |= later.input_shape


def _traced(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> _Trace:
    """Return the trace of the named modules during one call of ``run``."""
    trace = _Trace()
    handles = [module.register_forward_hook(trace.hook(name), with_kwargs=True) for name, module in modules.items()]
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return trace


def kind_of(module: nn.Module) -> LayerKind | None:
    """Return the layer kind of a module, or None if no kernel can replace it."""
    # A subclass with its own forward may compute something the replacement kernels do not.
    return next(
        (k for cls, k in _KINDS.items() if isinstance(module, cls) and type(module).forward is cls.forward), None
    )


def _flops(module: nn.Module, taken: torch.Tensor, returned: torch.Tensor) -> int:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return 0
    if isinstance(module, nn.LSTM | nn.GRU):
        return 2 * (returned.numel() // returned.shape[-1]) * sum(w.numel() for w in module.parameters() if w.dim() > 1)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    # Multiply-accumulates per output: in_features, or in_channels / groups x kernel size. A transposed convolution
    # counts the same way per input.
    each = taken if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d) else returned
    return 2 * each.numel() * math.prod(weight.shape[1:])


def _weight_shape(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, nn.LSTM | nn.GRU):
        gates = 4 if isinstance(module, nn.LSTM) else 3
        directions = 2 if module.bidirectional else 1
        return (module.num_layers, directions, gates * module.hidden_size, module.input_size)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return tuple(weight.shape)


def _layer(name: str, module: nn.Module, trace: _Trace, frozen_reason: str | None) -> Layer:
    kind = kind_of(module)
    assert kind is not None
    return Layer(
        name=name,
        kind=kind,
        weight_shape=_weight_shape(module),
        has_bias=any(part.startswith("bias") for part, _ in module.named_parameters()),
        weight_bytes=sum(parameter.nbytes for parameter in module.parameters()),
        input_shape=trace.input_shape.get(name, ()),
        flops=trace.flops.get(name, 0),
        calls=trace.calls.get(name, 0),
        order=0,
        group=fusion_group(name),
        conv_groups=getattr(module, "groups", 1),
        frozen_reason=frozen_reason,
    )


def _bypassed(model: nn.Module) -> set[str]:
    """Return the names of layers whose weights PyTorch's fused encoder kernel reads without calling the layers."""
    encoders = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.TransformerEncoderLayer) and isinstance(module.self_attn, nn.MultiheadAttention)
    ]
    return {
        f"{name}.{child}" if name else child
        for name in encoders
        for child in ("linear1", "linear2", "self_attn.out_proj")
    }


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Return parameter id -> names of the modules that hold it."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return owners


def _reasons_elsewhere(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return name -> why a layer stays as it is whether it runs or not: something else reads its weight."""
    owners, bypassed = _owners(model), _bypassed(model)
    reasons = {}
    for name, module in modules.items():
        held = (owner for parameter in module.parameters(recurse=False) for owner in owners[id(parameter)])
        tied = sorted(set(held) - {name})
        if tied:
            reasons[name] = (
                f"shares its weight with {', '.join(tied)}; a quantized copy would add memory instead of saving it"
            )
        elif name in bypassed:
            reasons[name] = "nn.TransformerEncoderLayer reads its weight without calling it"
    return reasons


def _idle_reasons(
    modules: Mapping[str, nn.Module], idle: Collection[str], run: Callable[[], object], batches: int
) -> dict[str, str]:
    """Return name -> why a layer that no hook saw in ``batches`` batches stays as it is."""
    if not idle:
        return {}
    direct = _called_directly({name: modules[name] for name in idle}, run)
    count = "the example batch" if batches == 1 else f"any of {batches} example batches"
    return {
        name: "the model calls its method forward, which calibration cannot observe; call the layer itself"
        if name in direct
        else f"never ran on {count}, so nothing can be calibrated or measured"
        for name in idle
    }


def _called_directly(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> set[str]:
    """Return the names of the modules whose method ``forward`` runs without a call of the module."""
    called: set[str] = set()

    def noting(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return forward(*args, **kwargs)

        return noted

    changed = {name: module for name, module in modules.items() if "forward" not in vars(module)}
    try:
        for name, module in changed.items():
            vars(module)["forward"] = noting(name, module.forward)
        with torch.inference_mode():
            run()
    finally:
        for module in changed.values():
            del vars(module)["forward"]
    return called


def _unusual(name: str, module: nn.Module) -> str | None:
    """Return a property of the layer that no replacement can reproduce, or None."""
    if not name:
        return "is the whole model; only layers inside a module can be replaced"
    dtype = next(module.parameters()).dtype
    if dtype != torch.float32:
        return f"has {dtype} weights; load the model in float32 to quantize it"
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return "has forward hooks or a patched forward, which a replacement would not run"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"pads with {module.padding_mode!r}; quantized kernels pad with zeros only"
    if getattr(module, "max_norm", None) is not None:
        return "renormalises its rows on every call, which quantized rows do not support"
    if isinstance(module, nn.EmbeddingBag) and (module.mode == "max" or module.padding_idx is not None):
        return "takes the maximum of rows or skips padding, for which there is no quantized kernel"
    if getattr(module, "proj_size", 0):
        return "projects its hidden states, for which there is no quantized kernel"
    return None
