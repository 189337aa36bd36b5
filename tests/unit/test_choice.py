"""Choices and maps: what cannot be built, and what identifies them."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.choice import CHOICES, FULL_PRECISION, ActivationMode, LayerChoice, Precision, choice_named
from search_spaces.errors import ChoiceError, MapError
from search_spaces.quantization_map import ActivationRange, QuantizationMap, map_key


@pytest.mark.parametrize(("precision", "activation"), list(itertools.product(Precision, ActivationMode)))
def test_a_choice_is_legal_and_has_a_name_or_cannot_be_built(precision: Precision, activation: ActivationMode) -> None:
    quantizes = activation is not ActivationMode.NONE
    if quantizes and precision not in (Precision.INT8, Precision.FP8):
        with pytest.raises(ChoiceError, match=r"but (precision is|got)"):
            LayerChoice(precision=precision, activation=activation)
    else:
        choice = LayerChoice(precision=precision, activation=activation)
        assert choice_named(choice.name) == choice


def test_names_are_those_of_job_files() -> None:
    expected = {"fp32", "bf16", "fp16", "int8_static", "int8_dynamic", "int8_weight_only", "int4_weight_only"}
    assert expected <= set(CHOICES)
    assert (FULL_PRECISION.name, Precision.BF16.bits, Precision.INT4.bits) == ("fp32", 16, 4)


def test_an_unknown_choice_names_its_neighbour() -> None:
    with pytest.raises(ChoiceError, match=r"unknown choice 'int8_statik'.*int8_static"):
        choice_named("int8_statik")


@pytest.mark.parametrize("bounds", [(1.0, 2.0), (-2.0, -1.0), (math.nan, 1.0), (-1.0, math.inf), (-math.inf, 0.0)])
def test_a_range_is_finite_and_holds_zero(bounds: tuple[float, float]) -> None:
    with pytest.raises(MapError, match="finite with low <= 0 <= high"):
        ActivationRange(low=bounds[0], high=bounds[1])


@given(st.floats(-1e6, 0.0), st.floats(0.0, 1e6))
def test_zero_is_quantized_without_error_and_the_range_fits(low: float, high: float) -> None:
    scale, zero_point = ActivationRange(low=low, high=high).affine_uint8()
    assert 0 <= zero_point <= 255
    assert scale > 0
    # The ends of the range are at most half a step, and rounding, off the ends of the integers.
    assert (0 - zero_point) * scale <= low + 0.51 * scale
    assert (255 - zero_point) * scale >= high - 0.51 * scale


def test_a_static_layer_needs_its_range() -> None:
    names = {"a": "int8_static", "b": "int8_dynamic", "c": "int8_static"}
    with pytest.raises(MapError, match="but c have none; calibrate them"):
        QuantizationMap.from_names(names, {"a": ActivationRange(low=-1.0, high=1.0)})


@given(st.dictionaries(st.text(min_size=1), st.sampled_from(["fp32", "bf16", "int8_dynamic"]), min_size=2))
def test_the_key_is_the_choices_whatever_their_order(names: dict[str, str]) -> None:
    assert map_key(names) == map_key(dict(reversed(names.items())))
    name = next(iter(names))
    assert map_key(names) != map_key(names | {name: "fp32" if names[name] != "fp32" else "bf16"})
    assert QuantizationMap.from_names(names).names == names
