"""Static int8 layers that turn dynamic: they keep their tensors, and no longer clip."""

import pytest
import torch
from torch import nn

from search_spaces.choice import choice_named
from search_spaces.quantization_map import ActivationRange, Smoothing
from workers.backends.cpu.backend import CpuBackend
from workers.backends.packed import PackedLayer, union_bytes

#: Bits of weights that are exact in every kernel.
BITS = 7
RANGE = ActivationRange(
    low=-1.0, high=1.0, smoothing=Smoothing(factors=tuple(0.5 + i / 32 for i in range(32)), low=-2.0, high=2.0)
)


def prepared(layer: nn.Module, choice: str) -> PackedLayer:
    found = CpuBackend().prepare(layer, choice_named(choice).with_weight_bits(BITS), RANGE)
    assert isinstance(found, PackedLayer)
    return found


def layers() -> list[tuple[nn.Module, torch.Tensor]]:
    """Layers, each with inputs that reach far outside the calibrated range."""
    torch.manual_seed(0)
    return [
        (nn.Linear(32, 16).eval(), 9.0 * torch.randn(4, 32)),
        (nn.Conv2d(32, 8, 3, padding=1).eval(), 9.0 * torch.randn(2, 32, 5, 5)),
        (nn.Conv1d(32, 8, 3).eval(), 9.0 * torch.randn(2, 32, 7)),
    ]


@pytest.mark.parametrize(("layer", "x"), layers(), ids=["linear", "conv2d", "conv1d"])
def test_a_flipped_layer_computes_what_a_dynamic_one_computes(layer: nn.Module, x: torch.Tensor) -> None:
    static = prepared(layer, "int8_static")
    with torch.inference_mode():
        before = static(x)
        flipped = static.dynamic()
        assert flipped is not None
        assert torch.equal(flipped(x), prepared(layer, "int8_dynamic")(x))
        assert torch.equal(static(x), before)
    assert not torch.equal(before, flipped(x))


def test_a_flipped_smooth_layer_divides_by_the_same_factors() -> None:
    layer, x = layers()[0]
    static = prepared(layer, "int8_static_smooth")
    flipped = static.dynamic()
    assert flipped is not None
    with torch.inference_mode():
        exact, clipped, found = layer(x), static(x), flipped(x)
        assert torch.equal(static(x), clipped)
    size = exact.abs().max()
    assert (clipped - exact).abs().max() > 0.3 * size
    assert (found - exact).abs().max() < 0.03 * size
    assert flipped.dynamic() is None


def test_a_flipped_linear_layer_holds_no_weights_of_its_own() -> None:
    static = prepared(layers()[0][0], "int8_static")
    flipped = static.dynamic()
    assert flipped is not None
    assert static.shared is flipped.shared
    assert union_bytes([static, flipped]) == static.packed_bytes + 4 * 16  # counts a bias each
    tensors = {id(value) for value in vars(static).values() if isinstance(value, torch.Tensor)}
    assert tensors == {id(value) for value in vars(flipped).values() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("choice", ["int8_dynamic", "int8_dynamic_per_token", "int8_weight_only"])
def test_only_static_layers_turn_dynamic(choice: str) -> None:
    assert prepared(layers()[0][0], choice).dynamic() is None
