"""Recipes that quantize an exported program: PyTorch's own flow, and Neural Compressor's search over it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.rivals.artefacts import Positional
from benchmarks.rivals.subject import Subject


def prepared_and_converted(subject: Subject, *, dynamic: bool) -> nn.Module:
    """Return the program that torchao's quantizer for inductor on x86 makes of the model."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    program = torch.export.export(subject.flat, subject.calls.tensors, dynamic_shapes=subject.dynamic_shapes)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    prepared = prepare_pt2e(program.module(), quantizer)
    run_on(prepared, subject.calibration())
    converted: nn.Module = convert_pt2e(prepared)
    return converted


def autotuned(subject: Subject) -> nn.Module:
    """Return the first program of Neural Compressor's list that keeps the limit: static ones first.

    Raises:
        RuntimeError: if none does.
    """
    from neural_compressor.torch import export
    from neural_compressor.torch.quantization import (
        DynamicQuantConfig,
        INT8StaticQuantConfig,
        TuningConfig,
        autotune,
    )

    calibration = subject.calibration()
    found = autotune(
        export.export(subject.flat, subject.calls.tensors, dynamic_shapes=subject.dynamic_shapes),
        TuningConfig(
            config_set=[INT8StaticQuantConfig.get_config_set_for_tuning(), DynamicQuantConfig()],
            tolerable_loss=subject.most_drop,
        ),
        eval_fn=lambda program: subject.accuracy(Positional(program, subject)),
        run_fn=lambda program: run_on(program, calibration),
        example_inputs=subject.calls.tensors,
    )
    if found is None:
        raise RuntimeError("no configuration keeps the limit")
    return found


def run_on(program: Callable[..., Any], calls: Sequence[tuple[torch.Tensor, ...]]) -> None:
    """Run a program on every call's tensors."""
    with torch.no_grad():
        for tensors in calls:
            program(*tensors)


#: Name -> function that returns a program.
RECIPES: Mapping[str, Callable[[Subject], nn.Module]] = {
    "static": lambda subject: prepared_and_converted(subject, dynamic=False),
    "dynamic": lambda subject: prepared_and_converted(subject, dynamic=True),
    "autotune": autotuned,
}
