"""The gradient sketch: a few backward passes instead of one evaluation per layer and choice.

Near full precision the divergence is quadratic in the change e of the outputs:

    divergence = e^T H e / 2,    e = J d.

d is the error of a choice at a layer's output, J is the Jacobian from there to the outputs, and H is the
curvature of the divergence: that of 1 - cos, or the Fisher matrix of the softmax. Dropping the second
derivatives of the network is the Gauss-Newton approximation (Martens, 2020, "New insights and
perspectives on the natural gradient method"). For a random vector v with covariance H,

    E[(v^T J d)^2] = e^T H e,

and one backward pass computes g = J^T v for all layers and all choices at once. The
divergence is therefore E[(g . d)^2] / 2, a mean over samples and vectors: the random projection of Hutchinson
(1990) for the trace of J^T H J.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from workers.model.prepared import PreparedModel
from workers.sensitivity.recording import Call, errors
from workers.task import OutputKind

#: The gradient at each call's output; None where the outputs do not depend on it.
_Gradients = tuple[torch.Tensor | None, ...]


def squared_products(
    calls: Sequence[Call],
    outputs: torch.Tensor,
    kind: OutputKind,
    prepared: PreparedModel,
    choices: Mapping[str, Sequence[str]],
    *,
    vectors: int,
    generator: torch.Generator,
    done: Callable[[str], object],
) -> dict[tuple[str, str], float]:
    """Return (layer, choice) -> sum of (g . d)^2 over the batch's samples and the random vectors.

    Args:
        calls: calls of the layers, in order.
        outputs: outputs of the model, with the autograd graph back to the calls; shape ``(samples, ..., features)``.
        kind: kind of the outputs.
        prepared: provides the layers prepared with the choices.
        choices: layer name -> names of choices.
        vectors: number of random vectors.
        generator: source of the random vectors.
        done: gets the layer of every call, when it is done.

    Raises:
        RuntimeError: if an operation between calls and outputs has no derivative.
    """
    gradients = _gradients(calls, outputs, kind, vectors, generator)
    products: dict[tuple[str, str], torch.Tensor] = {}
    for index, call in enumerate(calls):
        at_output = [gradient[index] for gradient in gradients]
        for choice in choices[call.layer]:
            key = (call.layer, choice)
            product = _products(at_output, errors(call, prepared.module(*key)), len(outputs))
            products[key] = _sum(products[key], product) if key in products else product
        done(call.layer)
    return {key: float(product.double().square().sum()) for key, product in products.items()}


def _gradients(
    calls: Sequence[Call], outputs: torch.Tensor, kind: OutputKind, vectors: int, generator: torch.Generator
) -> list[_Gradients]:
    """Return the gradients of each vector at the calls' outputs; this frees the autograd graph."""
    at_calls = [call.output for call in calls]
    # If the calls' outputs can have gradients but the model's outputs cannot, they do not depend on these calls.
    idle = not outputs.requires_grad and all(tensor.requires_grad for tensor in at_calls)
    found: list[_Gradients] = []
    for left in reversed(range(vectors)):
        vector = random_vector(outputs.detach(), kind, generator)
        if idle:
            found.append((None,) * len(calls))
        else:
            found.append(torch.autograd.grad(outputs, at_calls, vector, retain_graph=left > 0, allow_unused=True))
    return found


def random_vector(outputs: torch.Tensor, kind: OutputKind, generator: torch.Generator) -> torch.Tensor:
    """Return a random vector per sample whose covariance is the curvature of its divergence.

    For standard normal z, the covariance of ``(z - (z . u) u) / |y|`` is the curvature of 1 - cos at y = |y| u, and
    that of ``sqrt(p) z - p (sqrt(p) . z)`` is the Fisher matrix ``diag(p) - p p^T`` of the softmax p. The
    divergence is a mean over the dimensions between samples and features, so these share one unit
    of variance.

    Args:
        outputs: outputs of full precision, shape ``(samples, ..., features)``.
        kind: kind of the outputs.
        generator: source of z.
    """
    # The noise becomes the vector in place, because logits of large vocabularies are the largest tensors of all.
    noise = torch.randn(outputs.shape, generator=generator).to(outputs.device)
    if kind is OutputKind.EMBEDDING:
        length = outputs.norm(dim=-1, keepdim=True)
        unit = outputs / length
        noise.sub_((noise * unit).sum(dim=-1, keepdim=True) * unit).div_(length)
        # A zero vector, such as that of a padding token, has no angle.
        noise.masked_fill_(length == 0.0, 0.0)
    else:
        probability = F.softmax(outputs, dim=-1)
        noise.mul_(probability.sqrt())
        noise.sub_(probability.mul_(noise.sum(dim=-1, keepdim=True)))
    return noise.div_(math.sqrt(math.prod(outputs.shape[1:-1])))


def _products(gradients: Sequence[torch.Tensor | None], error: torch.Tensor, samples: int) -> torch.Tensor:
    """Return g . d for each vector and sample, shape ``(vectors, samples)``.

    For an output without a sample dimension, such as that of a position embedding, this is the sum over the
    samples. Since v is independent between samples, its square has the same expectation.
    """
    rows = samples if error.dim() > 1 and error.shape[0] == samples else 1
    flat = error.reshape(rows, -1)
    zero = torch.zeros(rows, device=error.device)
    return torch.stack([zero if g is None else torch.linalg.vecdot(g.reshape(rows, -1), flat) for g in gradients])


def _sum(products: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """Return the sum over two calls of a layer; if only one has a sample dimension, both are summed over samples."""
    if products.shape == more.shape:
        return products + more
    return products.sum(dim=1, keepdim=True) + more.sum(dim=1, keepdim=True)
