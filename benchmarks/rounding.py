"""Compare roundings by the divergence of uniform maps of linear layers, simulated in fp32.

    python -m benchmarks.rounding minilm-lee

The roundings of 4-bit weights are: to nearest, as in the backends; weighted, where scale and zero of each group
minimise the squared error expected from calibration; and GPTQ (Frantar et al., arXiv:2210.17323), as in the backends
and with all second moments instead of the directions stored in a map. Each is also measured with its mean error
corrected by the bias.
"""

import argparse
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import benchmarks.search.models  # noqa: F401 - registers its tasks
from workers import quality
from workers.backends.rounding.weights import INT4_GROUP, int4_per_group
from workers.calibration.moments import MomentSketch
from workers.task import Split, Task
from workers.tasks import build_task

CUTS = (1.0, 0.9, 0.8, 0.7)
DAMPING = 0.01


class Inputs:
    """Mean and second moments of a layer's inputs."""

    def __init__(self, features: int) -> None:
        self.rows = 0
        self.sum, self.products = torch.zeros(features), torch.zeros(features, features)
        self.sketch = MomentSketch(features)

    def add(self, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        self.rows += len(rows)
        self.sum += rows.sum(dim=0)
        self.products += rows.T @ rows
        self.sketch.add(rows)


def nearest(weight: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    return widened(*int4_per_group(weight))


def widened(values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    groups = (values.view(*scales.shape, INT4_GROUP) - 8.0) * scales.float()[..., None] + zeros.float()[..., None]
    return groups.flatten(1)


def weighted(weight: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    groups = weight.reshape(len(weight), -1, INT4_GROUP)
    importance = inputs.products.diagonal().view(1, -1, INT4_GROUP)
    low, high = groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)
    rounded = []
    for below, above in itertools.product(CUTS, CUTS):
        scale = ((above * high - below * low) / 15.0).clamp(min=1e-30).bfloat16().float()[..., None]
        zero = (below * low[..., None] + 8.0 * scale).bfloat16().float()
        rounded.append(torch.clamp(torch.round((groups - zero) / scale) + 8, 0, 15).sub(8.0) * scale + zero)
    tried = torch.stack(rounded)
    best = (importance * (tried - groups).square()).sum(-1, keepdim=True).argmin(0)
    return tried.gather(0, best.expand_as(groups)[None])[0].flatten(1)


def gptq(weight: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    return widened(*int4_per_group(weight, inputs.sketch.moments()))


def whole_gptq(weight: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    hessian = inputs.products.clone()
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    order = hessian.diagonal().argsort(descending=True)
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian[order][:, order].double()), upper=True).float()
    left, rounded = weight[:, order], torch.zeros_like(weight)
    _, scales, zeros = (part.float() for part in int4_per_group(weight))
    for place, column in enumerate(order.tolist()):
        scale, zero = (part[:, column // INT4_GROUP] for part in (scales, zeros))
        rounded[:, column] = ((left[:, place] - zero) / scale).round().clamp(-8, 7) * scale + zero
        errors = (left[:, place] - rounded[:, column]) / inverse[place, place]
        left[:, place:] -= errors[:, None] * inverse[place, place:]
    return rounded


def calibrated(task: Task, model: nn.Module) -> dict[str, Inputs]:
    found = {
        name: Inputs(module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.in_features % INT4_GROUP == 0
    }
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.add(args[0]))
        for name, inputs in found.items()
    ]
    with torch.inference_mode():
        for batch in task.calibration():
            task.forward(model, batch)
    for handle in handles:
        handle.remove()
    return {name: inputs for name, inputs in found.items() if inputs.rows}


def divergence(
    task: Task, model: nn.Module, inputs: dict[str, Inputs], rounding: Callable[..., torch.Tensor], *, correct: bool
) -> float:
    reference = quality.outputs(task, model, Split.EVALUATION)
    for name, of_layer in inputs.items():
        module, weight = model.get_submodule(name), model.get_submodule(name).weight.detach()
        rounded, bias = rounding(weight, of_layer), module.bias
        if correct:
            bias = (weight - rounded) @ (of_layer.sum / of_layer.rows) + (0.0 if bias is None else bias.detach())
        module.forward = lambda x, rounded=rounded, bias=bias: F.linear(x, rounded, bias)
    found = quality.divergence(quality.outputs(task, model, Split.EVALUATION), reference, task.output_kind)
    for name in inputs:
        del model.get_submodule(name).forward
    return float(found.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    task = build_task(parser.parse_args().task, {})
    model = task.build_model().eval()
    inputs = calibrated(task, model)
    for rounding in (nearest, weighted, gptq, whole_gptq):
        plain, corrected = (divergence(task, model, inputs, rounding, correct=correct) for correct in (False, True))
        print(f"int4 {rounding.__name__:10} divergence {plain:.2e}, with corrected biases {corrected:.2e}")


if __name__ == "__main__":
    main()
