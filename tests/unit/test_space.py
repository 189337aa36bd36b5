"""Search spaces: groups, the user's rules, and why a choice is left out."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.choice import LayerChoice
from search_spaces.errors import SpaceError
from search_spaces.layer import Layer, LayerKind
from search_spaces.space import LayerRule, SearchSpace, build_space

CHOICES = ("fp32", "bf16", "int8_static", "int8_dynamic")


def layer(name: str, group: str | None = None, frozen: str | None = None) -> Layer:
    return Layer(
        name=name, kind=LayerKind.LINEAR, weight_shape=(4, 4), has_bias=False, weight_bytes=64, input_shape=(1, 4),
        flops=32, calls=1, order=0, group=group or name, frozen_reason=frozen,
    )  # fmt: skip


def only_dynamic_in_b(layer: Layer, choice: LayerChoice) -> str | None:
    return "no kernel" if layer.name == "b" and choice.name == "int8_static" else None


def build(layers: Sequence[Layer], *rules: LayerRule, choices: Sequence[str] = CHOICES) -> SearchSpace:
    return build_space(layers, choices=choices, supports=only_dynamic_in_b, rules=rules)


def choices_of(space: SearchSpace) -> dict[str, tuple[str, ...]]:
    return {group.name: group.choices for group in space.groups}


def test_a_layer_takes_what_its_backend_has_and_says_why_not_the_rest() -> None:
    space = build([layer("a"), layer("b"), layer("c", frozen="is tied")])
    assert choices_of(space) == {"a": CHOICES, "b": ("fp32", "bf16", "int8_dynamic"), "c": ("fp32",)}
    assert space.refusals["b"] == {"int8_static": "no kernel"}
    assert set(space.refusals["c"].values()) == {"is tied"}
    assert space.size == 4 * 3
    assert [group.name for group in space.free_groups] == ["a", "b"]


def test_a_group_takes_what_all_its_layers_can() -> None:
    space = build([layer("a", "g"), layer("x"), layer("b", "g")])
    assert choices_of(space) == {"g": ("fp32", "bf16", "int8_dynamic"), "x": CHOICES}
    taken = space.layer_choices({"g": "bf16", "x": "int8_static"})
    assert list(taken.items()) == [("a", "bf16"), ("x", "int8_static"), ("b", "bf16")]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (LayerRule(pattern="a.*", allow=("bf16", "int8_static")), ("bf16", "int8_static")),
        (LayerRule(pattern="a.*", deny=("int8_static", "int8_dynamic")), ("fp32", "bf16")),
        (LayerRule(pattern="a.*", pin="int8_dynamic"), ("int8_dynamic",)),
        (LayerRule(pattern="*.x", pin="fp32"), ("fp32",)),
        (LayerRule(pattern="b", pin="fp32"), CHOICES),
    ],
)
def test_a_rule_holds_for_the_layers_it_matches(rule: LayerRule, expected: tuple[str, ...]) -> None:
    assert choices_of(build([layer("a.x"), layer("b")], rule))["a.x"] == expected


def test_all_matching_rules_apply_and_a_pin_wins() -> None:
    allow, deny = LayerRule(pattern="a*", allow=("bf16", "int8_static")), LayerRule(pattern="*1", deny=("bf16",))
    layers = [layer("a1"), layer("a2")]
    assert choices_of(build(layers, allow, deny)) == {"a1": ("int8_static",), "a2": ("bf16", "int8_static")}
    pinned = build(layers, allow, deny, LayerRule(pattern="a1", pin="fp32"))
    assert choices_of(pinned)["a1"] == ("fp32",)
    assert pinned.refusals["a1"]["bf16"] == "pinned to fp32 by 'a1'"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([LayerRule(pattern="aa", pin="fp32")], "unknown layer pattern 'aa'"),
        ([LayerRule(pattern="a", pin="fp32"), LayerRule(pattern="*", pin="bf16")], "pinned to fp32 and bf16"),
        ([LayerRule(pattern="b", pin="int8_static")], "cannot be pinned to int8_static .*no kernel"),
    ],
)
def test_rules_that_cannot_hold_are_refused(rules: list[LayerRule], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        build([layer("a"), layer("b")], *rules)


def test_full_precision_stays_where_nothing_else_is_left() -> None:
    assert choices_of(build([layer("b")], choices=("int8_static",))) == {"b": ("fp32",)}


def test_an_assignment_must_name_every_free_group() -> None:
    space = build([layer("a"), layer("b")])
    with pytest.raises(SpaceError, match="group 'b' must take one of fp32, bf16, int8_dynamic, but got None"):
        space.layer_choices({"a": "fp32"})
    with pytest.raises(SpaceError, match="but got 'int8_static'"):
        space.layer_choices({"a": "fp32", "b": "int8_static"})


def test_a_uniform_map_falls_back_to_full_precision() -> None:
    space = build([layer("a"), layer("b")])
    assert space.uniform("int8_static") == {"a": "int8_static", "b": "fp32"}
    assert space.uniform_choices() == CHOICES


@given(st.data())
def test_maps_of_the_space_are_held_and_lead_back_to_their_assignment(data: st.DataObject) -> None:
    space = build([layer("a", "g"), layer("b", "g"), layer("c")])
    assignment = {group.name: data.draw(st.sampled_from(group.choices)) for group in space.free_groups}
    taken = space.layer_choices(assignment)
    assert space.holds(taken)
    assert space.assignment(taken) == assignment
    assert not space.holds(taken | {"a": "int8_static"})
    assert not space.holds(taken | {"b": next(name for name in CHOICES if name != taken["b"])})
