"""Maps and their ranges: what cannot be built, and the keys that identify maps in databases."""

import math
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.choice import CHOICES, choice_named
from search_spaces.errors import ChoiceError, MapError
from search_spaces.quantization_map import ActivationRange, QuantizationMap, map_key

RANGE = ActivationRange(low=-1.0, high=3.0)
NAMES = st.dictionaries(st.text(), st.sampled_from(sorted(CHOICES)), max_size=4)


@pytest.mark.parametrize("bounds", [(1.0, 2.0), (-2.0, -1.0), (math.nan, 1.0), (-1.0, math.inf), (-math.inf, 0.0)])
def test_a_range_is_finite_and_holds_zero(bounds: tuple[float, float]) -> None:
    with pytest.raises(MapError, match=rf"must be finite with low <= 0 <= high, but got \[{bounds[0]}, "):
        ActivationRange(low=bounds[0], high=bounds[1])


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [(-1.0, 3.0, 4 / 255, 64), (0.0, 255.0, 1.0, 0), (-255.0, 0.0, 1.0, 255), (0.0, 0.0, 1e-12, 0)],
)
def test_scale_and_zero_point(low: float, high: float, scale: float, zero_point: int) -> None:
    assert ActivationRange(low=low, high=high).affine_uint8() == pytest.approx((scale, zero_point))


@given(st.floats(-1e6, 0.0), st.floats(0.0, 1e6))
def test_the_range_fits_the_integers(low: float, high: float) -> None:
    scale, zero_point = ActivationRange(low=low, high=high).affine_uint8()
    assert 0 <= zero_point <= 255
    assert scale > 0
    # The ends of the range are at most half a step, and rounding, off the ends of the integers.
    assert (0 - zero_point) * scale <= low + 0.51 * scale
    assert (255 - zero_point) * scale >= high - 0.51 * scale


@given(st.floats(-1e6, 0.0), st.floats(1e-3, 1e6), st.floats(0.0, 1.0))
def test_a_value_of_the_range_comes_back_within_one_step(low: float, high: float, share: float) -> None:
    scale, zero_point = ActivationRange(low=low, high=high).affine_uint8()
    value = low + share * (high - low)
    integer = min(255, max(0, round(value / scale) + zero_point))
    assert abs((integer - zero_point) * scale - value) <= 1.001 * scale


def test_every_layer_without_a_range_is_named_in_order() -> None:
    names = {"c": "int8_static", "d": "int8_static", "b": "int8_weight_only", "a": "fp8_static"}
    with pytest.raises(MapError, match="but c, a have none; calibrate them"):
        QuantizationMap.from_names(names, {"d": RANGE})


def test_ranges_nobody_needs_do_no_harm_and_change_no_key() -> None:
    names = {"b": "int8_dynamic", "a": "fp32"}
    ranged = QuantizationMap.from_names(names, {"a": RANGE, "elsewhere": RANGE})
    assert ranged.key == QuantizationMap.from_names(names).key == map_key(names)


def test_names_and_choices_keep_the_order_of_execution() -> None:
    quantization = QuantizationMap.from_names({"z": "int8_static", "a": "bf16"}, {"z": RANGE})
    assert list(quantization.names.items()) == [("z", "int8_static"), ("a", "bf16")]
    assert list(quantization.choices.values()) == [choice_named("int8_static"), choice_named("bf16")]


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ChoiceError, match="unknown choice 'bf61'; did you mean 'bf16'"):
        QuantizationMap.from_names({"a": "bf61"})


def test_a_map_does_not_change() -> None:
    quantization = QuantizationMap.from_names({"a": "fp32"})
    with pytest.raises(FrozenInstanceError):
        quantization.choices = {}  # type: ignore[misc]


@given(NAMES, NAMES)
def test_keys_are_equal_just_when_the_maps_are(one: dict[str, str], other: dict[str, str]) -> None:
    assert (map_key(one) == map_key(other)) == (one == other)
    assert map_key(one) == map_key(dict(reversed(one.items())))
    assert len(map_key(one)) == 32
    assert len({map_key(one), map_key(one, "cpu"), map_key(one, learned="a" * 64), map_key(one, "cpu", "a" * 64)}) == 4
    int(map_key(one), 16)


def test_keys_in_databases_stay_what_they_were() -> None:
    assert map_key({"b": "int8_static", "a": "fp32"}) == "8a347d2e30c18bd14f20a84a08106bf2"
    assert map_key({"größe.\U0001f642": "bf16"}) == "3f2e451adc66b28beb145c145b9e58e1"
