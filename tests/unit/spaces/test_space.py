"""Search spaces: groups, the user's rules, and why a choice is left out."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.choice import LayerChoice
from search_spaces.errors import ChoiceError, SpaceError
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
        (LayerRule(pattern="a.[wx]", deny=("fp32",)), CHOICES[1:]),
        (LayerRule(pattern="a.x", allow=("int8_dynamic", "fp32")), ("fp32", "int8_dynamic")),
        (LayerRule(pattern="a.x", allow=("fp16",)), ("fp32",)),
        (LayerRule(pattern="a.x", pin="fp16"), ("fp16",)),
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


def test_a_name_with_brackets_is_a_pattern_for_itself() -> None:
    layers = [layer("block[0]"), layer("block[1]")]
    pinned = choices_of(build(layers, LayerRule(pattern="block[0]", pin="fp32")))
    assert pinned["block[0]"] == ("fp32",)
    assert len(pinned["block[1]"]) > 1
    assert choices_of(build(layers, LayerRule(pattern="block[[][01]]", pin="fp32"))) == dict.fromkeys(pinned, ("fp32",))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([LayerRule(pattern="aa", pin="fp32")], r"unknown layer pattern 'aa'; did you mean 'a'\? Known: a, b"),
        ([LayerRule(pattern="A", deny=("bf16",))], r"unknown layer pattern 'A'\. Known: a, b"),
        ([LayerRule(pattern="", deny=("bf16",))], "unknown layer pattern ''"),
        (
            [LayerRule(pattern="c[0]", deny=("bf16",))],
            r"'c\[0\]'.*Brackets are a set of characters; write \[\[\] for",
        ),
        (
            [LayerRule(pattern="a", pin="fp32"), LayerRule(pattern="*", pin="bf16")],
            "layer 'a' is pinned to fp32 and bf16 by different patterns; keep one",
        ),
        (
            [LayerRule(pattern="[b]", pin="int8_static")],
            r"layer 'b' cannot be pinned to int8_static \(pattern '\[b\]'\): no kernel",
        ),
    ],
)
def test_rules_that_cannot_hold_are_refused(rules: list[LayerRule], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        build([layer("a"), layer("b")], *rules)


def test_equal_pins_agree() -> None:
    space = build([layer("a")], LayerRule(pattern="a", pin="bf16"), LayerRule(pattern="*", pin="bf16"))
    assert choices_of(space) == {"a": ("bf16",)}


@pytest.mark.parametrize("frozen", [None, "is tied"])
def test_a_frozen_layer_can_be_pinned_to_full_precision_only(frozen: str | None) -> None:
    layers = [layer("a", frozen=frozen)]
    assert choices_of(build(layers, LayerRule(pattern="a", pin="fp32"))) == {"a": ("fp32",)}
    if frozen:
        with pytest.raises(SpaceError, match=r"layer 'a' cannot be pinned to bf16 \(pattern 'a'\): is tied"):
            build(layers, LayerRule(pattern="a", pin="bf16"))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"allow": ("fp32",), "pin": "fp32"},
        {"allow": (), "deny": ()},
        {"allow": (), "deny": (), "pin": ""},
        {"deny": (), "sensitivity": 2.0},
    ],
)
def test_a_rule_says_one_thing(given: dict[str, Any]) -> None:
    expected = f"exactly one of allow, deny, pin or sensitivity, but the rule for 'a' has {', '.join(given) or 'none'}"
    with pytest.raises(SpaceError, match=expected):
        LayerRule(pattern="a", **given)


@pytest.mark.parametrize("rule", [{"allow": ("int9",)}, {"deny": ("fp32", "int9")}, {"pin": "int9"}])
def test_a_rule_knows_its_choices(rule: dict[str, Any]) -> None:
    with pytest.raises(ChoiceError, match="unknown choice 'int9'"):
        build([layer("a")], LayerRule(pattern="a", **rule))


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ChoiceError, match="unknown choice 'int9'"):
        build([layer("a")], choices=("fp32", "int9"))


def test_a_rule_tells_why_it_left_a_choice_out_and_the_backend_speaks_first() -> None:
    space = build([layer("a"), layer("b")], LayerRule(pattern="*", deny=("int8_static",)))
    assert space.refusals["a"] == {"int8_static": "not allowed by the rule for '*'"}
    assert space.refusals["b"] == {"int8_static": "no kernel"}


def test_a_group_in_disagreement_takes_full_precision() -> None:
    rules = LayerRule(pattern="a", allow=("bf16",)), LayerRule(pattern="b", allow=("int8_dynamic",))
    assert choices_of(build([layer("a", "g"), layer("b", "g")], *rules)) == {"g": ("fp32",)}


def test_a_pin_of_one_layer_moves_its_group() -> None:
    space = build([layer("a", "g"), layer("b", "g")], LayerRule(pattern="a", pin="bf16"))
    assert choices_of(space) == {"g": ("bf16",)}
    assert space.layer_choices({}) == {"a": "bf16", "b": "bf16"}


@pytest.mark.parametrize(
    ("pin", "reason", "rules"),
    [
        ("int8_static", "no kernel", []),
        ("int8_dynamic", "pinned to bf16 by 'b'", [LayerRule(pattern="b", pin="bf16")]),
        ("fp32", "not allowed by the rule for 'b'", [LayerRule(pattern="b", deny=("fp32",))]),
        ("fp16", "it is not among the choices", []),
    ],
)
def test_a_pin_its_group_cannot_follow_is_refused(pin: str, reason: str, rules: list[LayerRule]) -> None:
    expected = rf"layer 'a' cannot be pinned to {pin} .*with 'b', which cannot take it: {reason}; pin them together"
    with pytest.raises(SpaceError, match=expected):
        build([layer("a", "g"), layer("b", "g")], LayerRule(pattern="a", pin=pin), *rules)


def test_a_pin_to_full_precision_needs_no_search_over_it() -> None:
    rule = LayerRule(pattern="a", pin="fp32")
    space = build([layer("a", "g"), layer("b", "g")], rule, choices=("bf16", "int8_dynamic"))
    assert choices_of(space) == {"g": ("fp32",)}
    assert "fp32" not in space.refusals["a"]
    assert space.refusals["b"]["bf16"] == "shares its choice with a, which cannot take it"


def test_a_layer_says_what_its_group_keeps_it_from() -> None:
    refusals = build([layer("a", "g"), layer("b", "g")]).refusals
    assert refusals["a"] == {"int8_static": "shares its choice with b, which cannot take it"}
    assert refusals["b"] == {"int8_static": "no kernel"}


def test_an_empty_model_has_one_empty_map() -> None:
    space = build([])
    assert (space.size, space.groups, space.layer_choices({})) == (1, (), {})


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
    assert space.uniform("int8_static", "int8_dynamic") == {"a": "int8_static", "b": "int8_dynamic"}
    assert space.uniform_choices() == CHOICES
    denied = build([layer("a"), layer("b")], LayerRule(pattern="a", deny=("fp32", "int8_static")))
    assert denied.uniform("int8_static") == {"a": "bf16", "b": "fp32"}
    assert build([layer("b")], choices=("bf16", "int8_static", "fp32")).uniform("int8_static") == {"b": "fp32"}


def test_a_uniform_map_leaves_pinned_groups_out() -> None:
    space = build([layer("a"), layer("b")], LayerRule(pattern="a", pin="bf16"))
    assert space.uniform("int8_dynamic") == {"b": "int8_dynamic"}
    assert space.layer_choices(space.uniform("int8_dynamic")) == {"a": "bf16", "b": "int8_dynamic"}
    assert space.size == 3


@given(st.data())
def test_maps_of_the_space_are_held_and_lead_back_to_their_assignment(data: st.DataObject) -> None:
    space = build([layer("a", "g"), layer("b", "g"), layer("c")])
    assignment = {group.name: data.draw(st.sampled_from(group.choices)) for group in space.free_groups}
    taken = space.layer_choices(assignment)
    assert space.holds(taken)
    assert space.assignment(taken) == assignment
    assert not space.holds(taken | {"a": "int8_static"})
    assert not space.holds(taken | {"b": next(name for name in CHOICES if name != taken["b"])})
