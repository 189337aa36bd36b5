"""The layer that learns computes what the kernels compute, before and after learning."""

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES, LayerChoice
from search_spaces.quantization_map import ActivationRange, SecondMoments, Smoothing
from workers.backends.cpu.backend import CpuBackend
from workers.recovery.fake_layer import FixedLayer, LearningLayer, can_learn

LAYERS = {
    "linear": (lambda: nn.Linear(64, 32), (5, 7, 64)),
    "without bias": (lambda: nn.Linear(64, 32, bias=False), (5, 64)),
    "conv": (lambda: nn.Conv2d(8, 16, 3, padding=1, stride=2), (2, 8, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), (2, 8, 9, 9)),
    "conv1d": (lambda: nn.Conv1d(8, 16, 3, padding=1), (2, 8, 20)),
}
CHOICES_WITH_INTEGERS = [choice for choice in CHOICES.values() if choice.rounds_to_nearest or choice.is_gptq]


def calibrated(features: int) -> ActivationRange:
    random = torch.Generator().manual_seed(3)
    factors, squares = (0.1 + torch.rand(features, generator=random) for _ in range(2))
    return ActivationRange(
        low=-1.5,  # narrower than the inputs, so that some are clipped
        high=2.0,
        smoothing=Smoothing(factors=tuple(factors.tolist()), low=-2.0, high=2.5),
        moments=SecondMoments(squares=tuple(squares.tolist()), scales=(), basis=""),
        means=tuple((squares - 0.5).tolist()),
    )


def cases() -> list[object]:
    """Return the layers and choices that the CPU backend has kernels for, with the bits that are exact here."""
    return [
        pytest.param(kind, choice, id=f"{kind}-{choice.name}")
        for kind in LAYERS
        for choice in CHOICES_WITH_INTEGERS
        if kind in ("linear", "without bias") or choice.name in ("int8_static", "int8_dynamic")
    ]


def exact_here(choice: LayerChoice) -> list[LayerChoice]:
    return [choice.with_weight_bits(bits) for bits in (8, 7)] if choice.needs_int8_products else [choice]


@pytest.mark.parametrize(("kind", "choice"), cases())
def test_fake_layer_equals_the_kernel(kind: str, choice: LayerChoice) -> None:
    build, shape = LAYERS[kind]
    torch.manual_seed(0)
    module, x = build().eval(), torch.randn(shape)
    backend, known = CpuBackend(), calibrated(module.weight.shape[1] * getattr(module, "groups", 1))
    for exact in exact_here(choice):
        with torch.no_grad():
            fake = LearningLayer(module, exact, known)
            # int4 products have bf16 inputs and sums; int8 weights alone may have bf16 products.
            rough = 2e-2 if not exact.needs_int8_products else 1e-5
            for learned in (False, True):
                if learned:
                    moved = fake.latent + 0.8 * torch.randn(fake.latent.shape)
                    fake.latent.copy_(torch.where(fake.grid.fixed, fake.latent, moved))
                    if fake.bias is not None:
                        fake.bias += 0.1
                    used = fake.learned().replacing(module, exact, known)
                    calibration = ActivationRange(
                        low=known.low, high=known.high, smoothing=known.smoothing, moments=known.moments
                    )
                else:
                    used, calibration = module, known
                layers: list[nn.Module] = [FixedLayer(module, exact, known, fake.learned() if learned else None)]
                if learned or not exact.is_gptq:  # which starts from other integers where they set the scale
                    layers.append(fake)
                # The first kernel runs 8-bit weights on any processor without saturation.
                kernel = backend.prepare(used, exact, calibration, (), "fp32")
                expected = kernel(x)
                for layer in layers:
                    error = (layer(x) - expected).norm() / expected.norm()
                    assert error < rough, (layer, learned, exact.weight_bits, float(error))


def test_learned_integers_are_those_of_the_kernel_bit_for_bit() -> None:
    module, choice = nn.Linear(64, 32), CHOICES["int8_dynamic"]
    known = calibrated(64)
    fake = LearningLayer(module, choice, known)
    with torch.no_grad():
        fake.latent += torch.where(fake.grid.fixed, 0.0, 3.0 * torch.randn(fake.latent.shape))
    learned = fake.learned()
    from workers.backends.rounding.weights import int8_per_channel

    values, _ = int8_per_channel(learned.replacing(module, choice, known).weight)
    assert torch.equal(values, learned.steps)


def test_gradients_pass_rounding_but_not_clipping_and_not_fixed_weights() -> None:
    torch.manual_seed(0)
    module = nn.Linear(64, 32)
    known = ActivationRange(low=-1.0, high=1.0)
    fake = LearningLayer(module, CHOICES["int8_static"], known)
    x = torch.linspace(-2.0, 2.0, 64).requires_grad_()
    fake(x).sum().backward()
    assert x.grad is not None
    assert fake.latent.grad is not None
    assert (x.grad[x.abs() > 1.05] == 0.0).all()
    assert (x.grad[x.abs() < 0.95] != 0.0).all()
    assert (fake.latent.grad[fake.grid.fixed] == 0.0).all()
    assert (fake.latent.grad[~fake.grid.fixed] != 0.0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("module", "choice", "learns"),
    [
        (nn.Linear(32, 4), "int8_static", True),
        (nn.Linear(32, 4), "int4_weight_only_gptq", True),
        (nn.Linear(32, 4), "bf16", False),
        (nn.Linear(32, 4), "fp8_static", False),
        (nn.Embedding(4, 32), "int8_weight_only", False),
        (nn.LSTM(4, 4), "int8_dynamic", False),
        (nn.Conv2d(3, 4, 3), "int8_dynamic", True),
    ],
)
def test_only_integer_weights_of_products_learn(module: nn.Module, choice: str, learns: bool) -> None:
    assert can_learn(module, CHOICES[choice]) == learns
