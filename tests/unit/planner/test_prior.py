"""Costs expected from probes, or from the sizes of layers, before any map is measured."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from autotune.planner.prior import Prior, expect
from search_spaces.layer import Layer, LayerKind
from search_spaces.space import LayerRule, SearchSpace, build_space
from workers.measurement import Environment
from workers.setup import Calibration, Estimator, LayerProbe, ModelDescription, Probes

MIB = 1 << 20
CHOICES = ("fp32", "bf16", "int8_static")
MEMORY_MIB = {"fp32": 4, "bf16": 2, "int8_static": 1}
MS = {"fp32": 4.0, "bf16": 3.0, "int8_static": 1.0}
PASS_MS = 20.0


def make_space(rules: Sequence[LayerRule] = (), refused: Mapping[str, str] | None = None) -> SearchSpace:
    """Return q and k in one group, o and p each by itself; p has the operations of the other three together."""
    layers = [
        Layer(
            name=name, kind=LayerKind.LINEAR, weight_shape=(8, 8), has_bias=False, weight_bytes=256,
            input_shape=(1, 8), flops=flops, calls=1, order=order, group=group,
        )
        for order, (name, group, flops) in enumerate([("q", "qk", 1), ("k", "qk", 1), ("o", "o", 2), ("p", "p", 4)])
    ]  # fmt: skip
    return build_space(
        layers,
        choices=CHOICES,
        supports=lambda layer, choice: "no kernel" if (refused or {}).get(layer.name) == choice.name else None,
        rules=rules,
    )


def make_probes(space: SearchSpace) -> Probes:
    """Layer number i diverges by i + 1 with bf16, and by ten times as much with int8."""
    return Probes(
        layers=tuple(
            LayerProbe(
                layer=layer.name, choice=choice, latency_ms=(i + 1) * MS[choice],
                divergence=(i + 1.0) * {"fp32": 0.0, "bf16": 1.0, "int8_static": 10.0}[choice],
            )
            for i, layer in enumerate(space.layers)
            for choice in CHOICES
        ),
        pass_ms=PASS_MS, estimator=Estimator.GRADIENT, samples=12, seconds=0.0,
    )  # fmt: skip


def expected(space: SearchSpace, *, probed: bool = True, rules: Sequence[LayerRule] = ()) -> Prior:
    description = ModelDescription(
        fingerprint="", layers=space.layers, refusals={}, other_bytes=7 * MIB,
        layer_bytes={layer.name: {choice: MIB * MEMORY_MIB[choice] for choice in CHOICES} for layer in space.layers},
        calibration=Calibration(ranges={}, samples=0, seconds=0.0),
        environment=Environment(hardware="", backend="", threads=1, load=0.0, versions={}),
    )  # fmt: skip
    return expect(space, description, make_probes(space) if probed else None, rules)


def test_costs_of_groups_are_sums_over_their_layers() -> None:
    found = expected(make_space())
    assert found.probed
    np.testing.assert_allclose(found.divergence, [[0, 3, 30], [0, 3, 30], [0, 4, 40]])
    np.testing.assert_allclose(found.latency * PASS_MS, [[0, -3, -9], [0, -3, -9], [0, -4, -12]])
    np.testing.assert_allclose(found.memory_mib, [[8, 4, 2], [4, 2, 1], [4, 2, 1]])
    assert (found.fixed_divergence, found.fixed_latency, found.fixed_memory_mib) == (0.0, 0.0, 7.0)


def test_sensitivities_of_the_user_multiply_the_expected_divergences() -> None:
    rules = [LayerRule(pattern="[qo]", sensitivity=3.0), LayerRule(pattern="o", sensitivity=0.5)]
    plain, found = expected(make_space(rules)), expected(make_space(rules), rules=rules)
    np.testing.assert_allclose(found.divergence, [[0, 3 + 2, 30 + 20], [0, 4.5, 45], [0, 4, 40]])
    np.testing.assert_array_equal(found.latency, plain.latency)
    np.testing.assert_allclose(plain.divergence, [[0, 3, 30], [0, 3, 30], [0, 4, 40]])


def test_the_costs_of_a_pinned_group_are_fixed() -> None:
    found = expected(make_space([LayerRule(pattern="[qk]", pin="int8_static")]))
    np.testing.assert_allclose(found.divergence, [[0, 3, 30], [0, 4, 40]])
    assert found.fixed_divergence == 30.0
    assert found.fixed_latency * PASS_MS == pytest.approx(-9)
    assert found.fixed_memory_mib == 7.0 + 2.0


@pytest.mark.parametrize("probed", [True, False])
def test_choices_a_group_does_not_have_cost_infinity(probed: bool) -> None:
    # What q is refused its group does not have; p has lost a choice before the last, so its others move up.
    space = make_space([LayerRule(pattern="p", deny=("bf16",))], refused={"q": "int8_static"})
    found = expected(space, probed=probed)
    for costs in (found.divergence, found.latency, found.memory_mib):
        np.testing.assert_array_equal(np.isinf(costs), [[False, False, True], [False] * 3, [False, False, True]])
    assert found.memory_mib[2].tolist()[:2] == [4.0, 1.0]
    if probed:
        assert found.divergence[2].tolist()[:2] == [0.0, 40.0]


def test_guesses_share_errors_by_layers_and_time_by_operations() -> None:
    found = expected(make_space(), probed=False)
    assert not found.probed
    np.testing.assert_allclose(found.divergence, [[0, 0.5, 0.5], [0, 0.25, 0.25], [0, 0.25, 0.25]])
    np.testing.assert_allclose(found.latency, 0.5 * np.outer([0.25, 0.25, 0.5], [0.0, -0.5, -0.75]))
    np.testing.assert_allclose(found.memory_mib, expected(make_space()).memory_mib)


def test_a_space_without_free_groups_is_all_fixed() -> None:
    found = expected(make_space([LayerRule(pattern="*", pin="bf16")]))
    assert found.divergence.shape[0] == 0
    assert found.fixed_divergence == 1 + 2 + 3 + 4
    assert found.fixed_memory_mib == 7.0 + 4 * 2
