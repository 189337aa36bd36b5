"""What each generation of GPUs runs, told without one."""

import dataclasses

import pytest

from search_spaces.choice import CHOICES, choice_named
from search_spaces.layer import Layer, LayerKind
from workers.backends.torchao.support import Capability, layer_bytes, refuses

LINEAR = Layer(
    name="linear", kind=LayerKind.LINEAR, weight_shape=(64, 96), has_bias=True, weight_bytes=4 * (64 * 96 + 64),
    input_shape=(8, 96), flops=1, calls=1, order=0, group="linear",
)  # fmt: skip
CONV = dataclasses.replace(LINEAR, kind=LayerKind.CONV2D, weight_shape=(64, 32, 3, 3))
EMBEDDING = dataclasses.replace(LINEAR, kind=LayerKind.EMBEDDING, has_bias=False)

#: Another name of what torchao's int8_dynamic is.
NEVER = {"int8_dynamic_per_token"}
FP8 = {"fp8_static", "fp8_dynamic", "fp8_weight_only"}


def refused(capability: Capability, layer: Layer = LINEAR) -> set[str]:
    return {name for name, choice in CHOICES.items() if refuses(capability, layer, choice)}


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        pytest.param((7, 0), set(CHOICES) - {"fp32", "fp16"}, id="V100"),
        pytest.param((7, 5), set(CHOICES) - {"fp32", "fp16"}, id="T4"),
        pytest.param((8, 0), FP8 | NEVER, id="A100"),
        pytest.param((8, 6), FP8 | NEVER, id="A10"),
        pytest.param((8, 9), NEVER, id="L4"),
        pytest.param((9, 0), NEVER, id="H100"),
        pytest.param((10, 0), NEVER, id="B200"),
        pytest.param((12, 0), NEVER, id="RTX 5090"),
        pytest.param(None, NEVER, id="cpu"),
    ],
)
def test_linear_layers_take_what_the_tensor_cores_do(capability: Capability, expected: set[str]) -> None:
    assert refused(capability) == expected


def test_refusal_names_capability_and_way_out() -> None:
    assert refuses((8, 0), LINEAR, choice_named("fp8_dynamic")) == (
        "fp8 needs compute capability 8.9 (L4, H100 or newer), but this GPU has 8.0; use int8"
    )
    assert refuses((7, 5), LINEAR, choice_named("bf16")) == (
        "bf16 needs compute capability 8.0 (A100 or newer), but this GPU has 7.5; use fp16"
    )


@pytest.mark.parametrize("layer", [CONV, EMBEDDING], ids=lambda layer: str(layer.kind))
def test_other_layers_take_half_precision_only(layer: Layer) -> None:
    assert refused((9, 0), layer) == set(CHOICES) - {"fp32", "bf16", "fp16"}
    reason = refuses((9, 0), layer, choice_named("int8_static"))
    assert reason == f"torchao has no int8_static kernel for {layer.kind} layers; they take fp32, bf16, fp16"


INT4 = {"int4_weight_only", "int4_weight_only_gptq"}
PRODUCTS = {"int8_static", "int8_static_smooth", "int8_dynamic", "fp8_static", "fp8_dynamic"}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 96), set()),
        ((64, 80), INT4),
        ((72, 96), {*PRODUCTS, *INT4}),
        ((10, 96), {*PRODUCTS, *INT4}),
        ((64, 50), {*PRODUCTS, *INT4}),
    ],
)
def test_shapes_that_kernels_cannot_tile_are_refused(shape: tuple[int, int], expected: set[str]) -> None:
    assert refused((9, 0), dataclasses.replace(LINEAR, weight_shape=shape)) == expected | NEVER


def test_shape_refusals_name_the_shape_and_the_way_out() -> None:
    odd = dataclasses.replace(LINEAR, weight_shape=(10, 50))
    assert refuses((9, 0), odd, choice_named("fp8_dynamic")) == (
        "8-bit products need features divisible by 16, but this layer takes 50 and returns 10; "
        "use bf16 or a weight-only choice"
    )
    assert refuses((9, 0), odd, choice_named("int4_weight_only")) == (
        "int4 needs input features divisible by 32, but this layer has 50; use int8"
    )


def test_scales_of_tokens_are_what_int8_dynamic_has() -> None:
    assert refuses((9, 0), LINEAR, choice_named("int8_dynamic_per_token")) == (
        "torchao's int8_dynamic already has one scale per row of the input; use that"
    )


def test_frozen_layer_stays_in_full_precision() -> None:
    frozen = dataclasses.replace(LINEAR, frozen_reason="is tied")
    assert refused((9, 0), frozen) == set(CHOICES) - {"fp32"}
    assert refuses((9, 0), frozen, choice_named("bf16")) == "is tied"


def test_bytes_are_counted_by_hand() -> None:
    weights, outputs = 64 * 96, 64
    assert {name: layer_bytes(LINEAR, CHOICES[name]) for name in CHOICES.keys() - NEVER} == {
        "fp32": 4 * (weights + outputs),
        "bf16": 2 * (weights + outputs),
        "fp16": 2 * (weights + outputs),
        "fp8_weight_only": weights + 4 * outputs + 2 * outputs,
        "fp8_static": weights + 4 + 4 + 2 * outputs,
        "fp8_dynamic": weights + 4 * outputs + 2 * outputs,
        "int8_weight_only": weights + 2 * outputs + 2 * outputs,
        "int8_static": weights + 4 * outputs + 4 + 4 * outputs,
        "int8_static_smooth": weights + 4 * outputs + 4 + 4 * outputs + 4 * 96,
        "int8_dynamic": weights + 4 * outputs + 4 * outputs,
        "int4_weight_only": weights // 2 + weights // 32 * 4 + 2 * outputs,
        "int4_weight_only_gptq": weights // 2 + weights // 32 * 4 + 2 * outputs,
    }
