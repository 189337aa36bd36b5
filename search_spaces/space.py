"""The search space of one model: groups of layers, and the choices each group may take."""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.choice import FULL_PRECISION, LayerChoice, choice_named
from search_spaces.errors import SpaceError, unknown
from search_spaces.layer import Layer

#: Returns why a layer cannot run with a choice, or None if it can.
Supports = Callable[[Layer, LayerChoice], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRule:
    """What the user requires or knows about the layers a pattern matches. Exactly one of the last four is set."""

    #: Layer name, or shell-style pattern over layer names, for example ``encoder.layer.0.*``.
    pattern: str
    #: Only these choices may be taken.
    allow: tuple[str, ...] | None = None
    #: These choices may not be taken.
    deny: tuple[str, ...] | None = None
    #: This choice is taken, without search.
    pin: str | None = None
    #: Factor on the divergence that is expected from quantizing the layers.
    sensitivity: float | None = None

    def __post_init__(self) -> None:
        given = [field for field in ("allow", "deny", "pin", "sensitivity") if getattr(self, field) is not None]
        if len(given) != 1:
            raise SpaceError(
                f"a layer rule needs exactly one of allow, deny, pin or sensitivity, but the rule for "
                f"{self.pattern!r} has {', '.join(given) or 'none'}"
            )

    def matches(self, layer: str) -> bool:
        """Return whether the pattern is the layer's name, or matches it."""
        return layer == self.pattern or fnmatch.fnmatchcase(layer, self.pattern)

    def names(self) -> tuple[str, ...]:
        """Return the choice names the rule mentions."""
        return self.allow or self.deny or ((self.pin,) if self.pin else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that share one choice."""

    #: Name shared by the layers; also the parameter's name in the study.
    name: str
    #: Member layers in execution order.
    layers: tuple[str, ...]
    #: Names of the choices every member can take; never empty.
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Groups x choices of one model, with the reason for every choice left out."""

    #: Layers in execution order.
    layers: tuple[Layer, ...]
    #: Groups in execution order.
    groups: tuple[Group, ...]
    #: Layer name -> choice name -> why the layer cannot take it.
    refusals: Mapping[str, Mapping[str, str]]

    @property
    def free_groups(self) -> tuple[Group, ...]:
        """Groups that have more than one choice: the parameters of the search."""
        return tuple(group for group in self.groups if len(group.choices) > 1)

    @property
    def size(self) -> int:
        """Number of different maps in the space."""
        return math.prod(len(group.choices) for group in self.groups)

    def layer_choices(self, assignment: Mapping[str, str]) -> dict[str, str]:
        """Return layer name -> choice name for an assignment of choices to the free groups.

        Raises:
            SpaceError: if a group is missing, or is assigned a choice it cannot take.
        """
        choices = {}
        for group in self.groups:
            choice = group.choices[0] if len(group.choices) == 1 else assignment.get(group.name)
            if choice not in group.choices:
                raise SpaceError(
                    f"group {group.name!r} must take one of {', '.join(group.choices)}, but got {choice!r}"
                )
            choices.update(dict.fromkeys(group.layers, choice))
        return {layer.name: choices[layer.name] for layer in self.layers}

    def holds(self, layer_choices: Mapping[str, str]) -> bool:
        """Return whether ``layer_choices`` is a map of this space."""
        return all(
            len({layer_choices[name] for name in group.layers}) == 1 and layer_choices[group.layers[0]] in group.choices
            for group in self.groups
        )

    def assignment(self, layer_choices: Mapping[str, str]) -> dict[str, str]:
        """Return the assignment of the free groups that yields ``layer_choices``."""
        return {group.name: layer_choices[group.layers[0]] for group in self.free_groups}

    def uniform(self, *choices: str) -> dict[str, str]:
        """Return the assignment in which each group takes the first of ``choices`` that it can take.

        Other groups take full precision if they can, else their first choice.
        """
        wanted = (*choices, FULL_PRECISION.name)
        return {
            group.name: next((name for name in wanted if name in group.choices), group.choices[0])
            for group in self.free_groups
        }

    def uniform_choices(self) -> tuple[str, ...]:
        """Return the choices at least one free group can take, in the order of the groups."""
        return tuple(dict.fromkeys(name for group in self.free_groups for name in group.choices))


def build_space(
    layers: Sequence[Layer],
    *,
    choices: Sequence[str],
    supports: Supports,
    rules: Sequence[LayerRule] = (),
) -> SearchSpace:
    """Return the space of ``choices`` over ``layers`` under the backend's limits and the user's rules.

    Args:
        layers: the model's layers in execution order.
        choices: choice names allowed anywhere, in the order they are listed to the user.
        supports: returns why the backend cannot run a layer with a choice, or None if it can.
        rules: the user's rules; all that match a layer apply, and a pin overrides the others.

    Raises:
        SpaceError: if a pattern matches no layer, or a layer or another layer of its group cannot run a pinned choice.
        ChoiceError: if a choice name is unknown.
    """
    _check_patterns(layers, rules)
    legal: dict[str, tuple[str, ...]] = {}
    refusals: dict[str, dict[str, str]] = {}
    for layer in layers:
        legal[layer.name], refusals[layer.name] = _legal_for(layer, choices, supports, rules)
    groups = []
    for name in dict.fromkeys(layer.group for layer in layers):
        members = tuple(layer.name for layer in layers if layer.group == name)
        _check_pins(members, legal, rules, refusals)
        shared = tuple(c for c in legal[members[0]] if all(c in legal[m] for m in members))
        taken = shared or (FULL_PRECISION.name,)
        for member, choice in ((m, c) for m in members for c in legal[m] if c not in taken):
            against = next(m for m in members if choice not in legal[m])
            refusals[member][choice] = f"shares its choice with {against}, which cannot take it"
        groups.append(Group(name=name, layers=members, choices=taken))
    return SearchSpace(layers=tuple(layers), groups=tuple(groups), refusals=refusals)


def _legal_for(
    layer: Layer, choices: Sequence[str], supports: Supports, rules: Sequence[LayerRule]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the choices ``layer`` may take (full precision if there are no others), and the refusals."""
    matching = [rule for rule in rules if rule.matches(layer.name)]
    pins = {rule.pin: rule.pattern for rule in matching if rule.pin is not None}
    if len(pins) > 1:
        raise SpaceError(f"layer {layer.name!r} is pinned to {' and '.join(pins)} by different patterns; keep one")
    if pins:
        (pin, pattern) = next(iter(pins.items()))
        reason = _why_not(layer, pin, supports)
        if reason:
            raise SpaceError(f"layer {layer.name!r} cannot be pinned to {pin} (pattern {pattern!r}): {reason}")
        return (pin,), {name: f"pinned to {pin} by {pattern!r}" for name in choices if name != pin}
    refusals = {}
    for name in choices:
        reason = _why_not(layer, name, supports) or _denied(name, matching)
        if reason:
            refusals[name] = reason
    return tuple(name for name in choices if name not in refusals) or (FULL_PRECISION.name,), refusals


def _check_pins(
    members: Sequence[str],
    legal: Mapping[str, Sequence[str]],
    rules: Sequence[LayerRule],
    refusals: Mapping[str, Mapping[str, str]],
) -> None:
    """Refuse a pin that another layer of the group cannot follow."""
    pins = [(rule.pin, rule.pattern, m) for rule in rules if rule.pin for m in members if rule.matches(m)]
    for pin, pattern, member in pins:
        for other in (name for name in members if pin not in legal[name]):
            reason = refusals[other].get(pin, "it is not among the choices")
            if pin == FULL_PRECISION.name and pin not in refusals[other]:
                continue  # a layer can be pinned to full precision even if the job does not search over it
            raise SpaceError(
                f"layer {member!r} cannot be pinned to {pin} (pattern {pattern!r}): it shares its choice with "
                f"{other!r}, which cannot take it: {reason}; pin them together"
            )


def _why_not(layer: Layer, name: str, supports: Supports) -> str | None:
    choice = choice_named(name)
    if choice == FULL_PRECISION:
        return None
    return layer.frozen_reason or supports(layer, choice)


def _denied(name: str, rules: Sequence[LayerRule]) -> str | None:
    for rule in rules:
        if (rule.allow is not None and name not in rule.allow) or (rule.deny is not None and name in rule.deny):
            return f"not allowed by the rule for {rule.pattern!r}"
    return None


def _check_patterns(layers: Sequence[Layer], rules: Sequence[LayerRule]) -> None:
    names = [layer.name for layer in layers]
    for rule in rules:
        for name in rule.names():
            choice_named(name)
        if not any(map(rule.matches, names)):
            brackets = ". Brackets are a set of characters; write [[] for a bracket" if "[" in rule.pattern else ""
            raise SpaceError(unknown("layer pattern", rule.pattern, names) + brackets)
