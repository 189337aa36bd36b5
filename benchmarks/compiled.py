"""Compile a task's model for the CPU, and time it against PyTorch as it is: latency ratio, and seconds to compile.

    python -m benchmarks.compiled minilm-lee

Variants: full precision, bf16, and int8 as torchao's ``X86InductorQuantizer`` quantizes it, static and dynamic. The
last compiles linear layers and convolutions one by one. Needs a C++ compiler, as every user of compiled models does.
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import benchmarks.models.efficientnet
import benchmarks.search.models  # noqa: F401 - registers its tasks
from workers.device import environment
from workers.task import Task
from workers.tasks import build_task
from workers.timing import latency
from workers.timing.device_lock import DeviceLock
from workers.timing.estimates import latency_ratio
from workers.timing.latency import Contender

Run = Callable[[], Any]


class Flat(nn.Module):
    """A model with its tensors as positional arguments and its first result."""

    def __init__(self, model: nn.Module, names: Sequence[int | str]) -> None:
        super().__init__()
        self.model, self._names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return the first tensor of the model's result."""
        args = [tensor for name, tensor in zip(self._names, tensors, strict=True) if isinstance(name, int)]
        named = {name: tensor for name, tensor in zip(self._names, tensors, strict=True) if isinstance(name, str)}
        result = self.model(*args, **named)
        return result if isinstance(result, torch.Tensor) else result[0]


def flat(task: Task, batch_size: int) -> tuple[Flat, tuple[torch.Tensor, ...]]:
    """Return the model of a task, and its inputs in one pass."""
    model, found = task.build_model().eval(), {}

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.update(dict([*enumerate(args), *kwargs.items()]))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        task.forward(model, task.latency_batch(batch_size))
    handle.remove()
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    return Flat(model, list(tensors)).eval(), tuple(tensors.values())


def compiled_bf16(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Run:
    inner = torch.compile(copy.deepcopy(model).bfloat16())
    return lambda: inner(*(x.bfloat16() if x.is_floating_point() else x for x in inputs))


def eager_bf16(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Run:
    inner = copy.deepcopy(model).bfloat16()
    return lambda: inner(*(x.bfloat16() if x.is_floating_point() else x for x in inputs))


def compiled(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Run:
    inner = torch.compile(model)
    return lambda: inner(*inputs)


def compiled_int8(model: nn.Module, inputs: Sequence[torch.Tensor], *, dynamic: bool) -> Run:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    exported = torch.export.export(copy.deepcopy(model), tuple(inputs)).module()
    exported.graph.eliminate_dead_code()  # the quantizer fails on layers whose results are not used
    exported.recompile()
    prepared = prepare_pt2e(exported, quantizer)
    prepared(*inputs)
    inner = torch.compile(convert_pt2e(prepared))
    return lambda: inner(*inputs)


def compiled_by_layer(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Run:
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            model.set_submodule(name, torch.compile(module))
    return lambda: model(*inputs)


VARIANTS: dict[str, Callable[[nn.Module, Sequence[torch.Tensor]], Run]] = {
    "bf16": eager_bf16,
    "compiled fp32": compiled,
    "compiled bf16": compiled_bf16,
    "compiled int8 static": lambda model, inputs: compiled_int8(model, inputs, dynamic=False),
    "compiled int8 dynamic": lambda model, inputs: compiled_int8(model, inputs, dynamic=True),
    "compiled layer by layer, fp32": compiled_by_layer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--parameters", type=json.loads, default={}, help="parameters of the task, as JSON")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    given = parser.parse_args()
    torch.set_num_threads(environment.usable_cores())
    # Weights are constants; without this, int8 weights would be packed in every pass.
    torch._inductor.config.freezing = True
    model, inputs = flat(build_task(given.task, given.parameters), given.batch_size)
    print(f"{environment.cpu_hardware()}, load {os.getloadavg()[0]:.1f}, {[tuple(x.shape) for x in inputs]}")
    with torch.no_grad(), DeviceLock("cpu").exclusive():
        exact = model(*inputs)
        for name in given.only:
            print(f"{name:30} {variant(VARIANTS[name], model, inputs, exact, given.repeats)}", flush=True)


def variant(
    build: Callable[[nn.Module, Sequence[torch.Tensor]], Run],
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    exact: torch.Tensor,
    repeats: int,
) -> str:
    """Return the figures of a variant, or why it does not run."""
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as cache, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # empty, as for a map that nobody compiled before
        start = time.perf_counter()
        try:
            run = build(model, inputs)
            outputs = run()
        except Exception as error:  # compilers raise anything
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        seconds = time.perf_counter() - start
        samples = latency.measure(
            Contender(install=lambda: None, run=run),
            Contender(install=lambda: None, run=lambda: model(*inputs)),
            batch_size=len(inputs[0]),
            repeats=repeats,
            warmup_s=0.5,
        )
    ratio = latency_ratio(samples)
    error = float((outputs.float() - exact).norm() / exact.norm())
    return (
        f"ratio {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], "
        f"{statistics.median(samples.candidate_ms):.2f} ms, first pass after {seconds:.1f} s, error {error:.1e}"
    )


if __name__ == "__main__":
    main()
