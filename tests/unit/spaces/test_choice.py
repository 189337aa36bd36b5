"""Choices: what cannot be built, how they are named, and what they need."""

import itertools
from dataclasses import FrozenInstanceError

import pytest

from search_spaces.choice import CHOICES, FULL_PRECISION, ActivationMode, LayerChoice, Method, Precision, choice_named
from search_spaces.errors import AutotuneError, ChoiceError, unknown


@pytest.mark.parametrize(("precision", "activation"), list(itertools.product(Precision, ActivationMode)))
def test_a_choice_is_legal_and_has_a_name_or_cannot_be_built(precision: Precision, activation: ActivationMode) -> None:
    quantizes = activation is not ActivationMode.NONE
    if quantizes and precision not in (Precision.INT8, Precision.FP8):
        with pytest.raises(ChoiceError, match=r"but (precision is|got)"):
            LayerChoice(precision=precision, activation=activation)
    else:
        choice = LayerChoice(precision=precision, activation=activation)
        assert choice_named(choice.name) == choice


def test_there_are_thirteen_choices_full_precision_first() -> None:
    assert list(CHOICES) == [
        "fp32", "bf16", "fp16", "fp8_weight_only", "fp8_static", "fp8_dynamic",
        "int8_weight_only", "int8_static", "int8_static_smooth", "int8_dynamic",
        "int8_dynamic_per_token", "int4_weight_only", "int4_weight_only_gptq",
    ]  # fmt: skip
    assert all(choice.name == name for name, choice in CHOICES.items())
    assert LayerChoice(precision=Precision.FP32) == FULL_PRECISION == CHOICES["fp32"]


@pytest.mark.parametrize(
    ("precision", "activation", "message"),
    [
        ("bf16", "static", "static activations need quantized weights, but precision is bf16; use int8 or fp8, or"),
        ("int4", "dynamic", "int4 weights need unquantized activations, but got dynamic; use int4_weight_only"),
    ],
)
def test_an_illegal_choice_says_the_way_out(precision: str, activation: str, message: str) -> None:
    with pytest.raises(ChoiceError, match=message):
        LayerChoice(precision=Precision(precision), activation=ActivationMode(activation))


@pytest.mark.parametrize(
    ("precision", "bits"), [("fp32", 32), ("bf16", 16), ("fp16", 16), ("fp8", 8), ("int8", 8), ("int4", 4)]
)
def test_a_precision_knows_its_width(precision: str, bits: int) -> None:
    assert Precision(precision).bits == bits
    assert Precision(precision).is_quantized == (bits <= 8)


@pytest.mark.parametrize(("precision", "activation"), [("int8", "dynamic"), ("fp8", "static"), ("bf16", "none")])
def test_only_int8_static_is_smoothed(precision: str, activation: str) -> None:
    with pytest.raises(ChoiceError, match=f"but got {precision} and {activation}; use int8_static_smooth"):
        LayerChoice(precision=Precision(precision), activation=ActivationMode(activation), method=Method.SMOOTH)


@pytest.mark.parametrize("precision", ["int8", "fp8", "bf16"])
def test_only_int4_is_rounded_by_gptq(precision: str) -> None:
    with pytest.raises(ChoiceError, match=f"GPTQ needs int4 weights, but got {precision}; use int4_weight_only_gptq"):
        LayerChoice(precision=Precision(precision), method=Method.GPTQ)


@pytest.mark.parametrize(("precision", "activation"), [("int8", "static"), ("fp8", "dynamic"), ("bf16", "none")])
def test_only_int8_dynamic_has_scales_of_tokens(precision: str, activation: str) -> None:
    with pytest.raises(ChoiceError, match=f"but got {precision} and {activation}; use int8_dynamic_per_token"):
        LayerChoice(precision=Precision(precision), activation=ActivationMode(activation), method=Method.PER_TOKEN)


def test_what_choices_need() -> None:
    static = ["fp8_static", "int8_static", "int8_static_smooth"]
    integer = [*static[1:], "int8_dynamic", "int8_dynamic_per_token"]
    needing = [name for name, choice in CHOICES.items() if choice.needs_calibration]
    assert needing == [*static, "int4_weight_only_gptq"]
    assert [name for name, choice in CHOICES.items() if choice.needs_int8_products] == integer
    assert [name for name, choice in CHOICES.items() if choice.is_smooth] == ["int8_static_smooth"]
    assert [name for name, choice in CHOICES.items() if choice.is_per_token] == ["int8_dynamic_per_token"]
    assert [name for name, choice in CHOICES.items() if choice.is_gptq] == ["int4_weight_only_gptq"]


def test_choices_are_values() -> None:
    assert {CHOICES["bf16"], LayerChoice(precision=Precision.BF16)} == {CHOICES["bf16"]}
    with pytest.raises(FrozenInstanceError):
        FULL_PRECISION.precision = Precision.INT8  # type: ignore[misc]


def test_an_unknown_choice_names_its_neighbour() -> None:
    with pytest.raises(ChoiceError, match=r"unknown choice 'int8_statik'; did you mean 'int8_static'\? Known: bf16, "):
        choice_named("int8_statik")
    assert issubclass(ChoiceError, AutotuneError)


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("a12", ["c", "a1"], "unknown thing 'a12'; did you mean 'a1'? Known: a1, c"),
        ("zzz", ["c", "a1"], "unknown thing 'zzz'. Known: a1, c"),
        ("zzz", [], "unknown thing 'zzz'. Known: none"),
    ],
)
def test_an_unknown_name_is_told_with_what_is_known(name: str, known: list[str], expected: str) -> None:
    assert unknown("thing", name, known) == expected
