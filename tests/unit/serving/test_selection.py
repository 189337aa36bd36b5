"""Which maps are deployed together, and the bytes that they take."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import ConflictError, NoFeasibleMapError
from autotune.jobs.front import compute_front
from autotune.jobs.records import JobRecord, JobState, TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.metrics.from_measurement import MIB
from autotune.serving.selection import Selection, selected, union_bytes
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import map_key
from workers.measurement import Environment
from workers.recovered import RecoveryReport, RecoverySettings
from workers.setup import Calibration, ModelDescription
from workers.timing.estimates import Figure

OUTPUTS, WEIGHTS = 4, 64
BIAS = 4 * OUTPUTS
#: Choice -> bytes of a layer.
BYTES = {
    "fp32": 4 * WEIGHTS + BIAS, "bf16": 2 * WEIGHTS + BIAS // 2, "int8_static": WEIGHTS + 8 * OUTPUTS + BIAS,
    "int8_dynamic": WEIGHTS + 8 * OUTPUTS + BIAS, "int8_dynamic_per_token": WEIGHTS + 8 * OUTPUTS + BIAS,
}  # fmt: skip
OTHER = 100
KINDS = {"a": LayerKind.LINEAR, "b": LayerKind.LINEAR, "c": LayerKind.CONV2D}
LAYERS = tuple(
    Layer(
        name=name, kind=kind, weight_shape=(OUTPUTS, 16), has_bias=True, weight_bytes=272, input_shape=(2, 16),
        flops=48, calls=1, order=order, group=name,
    )
    for order, (name, kind) in enumerate(KINDS.items())
)  # fmt: skip
DESCRIPTION = ModelDescription(
    fingerprint="f" * 64,
    layers=LAYERS,
    refusals={},
    layer_bytes=dict.fromkeys(KINDS, BYTES),
    other_bytes=OTHER,
    calibration=Calibration(ranges={}, samples=64, seconds=0.5),
    environment=Environment(hardware="cpu", backend="cpu", threads=2, load=0.5, versions={}),
)
JOB = JobRecord(
    id="j", name="x", task="digits-cnn", state=JobState.FINISHED, created_at=now(), updated_at=now(),
    document={"name": "x", "task": {"name": "digits-cnn"}, "objectives": ["latency_p50_ms", "divergence"],
              "constraints": {"divergence": {"max": 0.1}}},
    description=DESCRIPTION,
)  # fmt: skip


def trial(number: int, choices: str, ratio: float, divergence: float, **changes: Any) -> TrialRecord:
    """A trial whose choices for the three layers are given in words."""
    names = dict(zip(KINDS, choices.split(), strict=True))
    figures = {"latency_ratio": ratio, "latency_p50_ms": 10.0 * ratio, "divergence": divergence, "accuracy": 0.9}
    known: dict[str, Any] = {
        "job_id": "j", "number": number, "kind": TrialKind.SEARCH, "label": None, "state": TrialState.COMPLETE,
        "choices": names, "key": map_key({**names, "n": str(number)}), "finished_at": now(),
        "figures": {name: Figure(value=value) for name, value in figures.items()},
        "violations": {"divergence": (divergence - 0.1) / 0.1},
    }  # fmt: skip
    return TrialRecord(**(known | changes))


FULL = trial(0, "fp32 fp32 fp32", 1.0, 0.0)


def chosen(trials: list[TrialRecord], max_bytes: int | None = None) -> Selection:
    members = compute_front(trials, JOB.spec.objectives).members
    return selected(JOB, trials, members, max_bytes)


def test_static_and_dynamic_weights_of_a_linear_layer_count_once() -> None:
    static, dynamic, token = (
        trial(n, f"{c} {c} {c}", 0.5, 0.01)
        for n, c in enumerate(("int8_static", "int8_dynamic", "int8_dynamic_per_token"), start=1)
    )
    one = OTHER + 3 * BYTES["int8_static"]
    assert union_bytes(DESCRIPTION, [static]) == union_bytes(DESCRIPTION, [static, static]) == one
    # A bias each in the linear layers; the convolution is packed twice.
    assert union_bytes(DESCRIPTION, [static, dynamic]) == one + 2 * BIAS + BYTES["int8_dynamic"]
    # Not every kernel can share the weights of tokens.
    assert union_bytes(DESCRIPTION, [static, token]) == one + 3 * BYTES["int8_dynamic_per_token"]


def test_learned_weights_are_another_copy() -> None:
    report = RecoveryReport(
        method="blocks", settings=RecoverySettings(), seconds=1.0, samples=8, validation_samples=8, before=0.2,
        after=0.1, layers=("a",), kept={}, sha256="0" * 64, nbytes=9,
    )  # fmt: skip
    plain = trial(1, "int8_static bf16 fp32", 0.5, 0.01)
    recovered = trial(2, "int8_static bf16 fp32", 0.5, 0.005, recovery=report, parent=1, kind=TrialKind.RECOVERED)
    assert union_bytes(DESCRIPTION, [plain, recovered]) == union_bytes(DESCRIPTION, [plain]) + BYTES["int8_static"]


def test_without_a_limit_the_whole_front_is_deployed() -> None:
    trials = [FULL, trial(1, "bf16 bf16 bf16", 0.8, 0.001), trial(2, "bf16 bf16 fp32", 0.9, 0.002)]
    found = chosen(trials)
    assert [each.number for each in found.trials] == [0, 1]  # the other one is dominated
    assert (found.recommended.number, found.left_out) == (1, {})
    assert found.weight_bytes == union_bytes(DESCRIPTION, found.trials)


maps = st.lists(
    st.tuples(
        st.lists(st.sampled_from(list(BYTES)), min_size=3, max_size=3), st.floats(0.3, 0.99), st.floats(1e-4, 0.09)
    ),
    min_size=1,
    max_size=6,
)


@given(maps, st.integers(0, 2000))
def test_a_bundle_keeps_its_limit_with_the_recommended_map_and_nothing_more_would_fit(
    drawn: list[tuple[list[str], float, float]], room: int
) -> None:
    trials = [FULL, *(trial(n, " ".join(c), ratio, loss) for n, (c, ratio, loss) in enumerate(drawn, start=1))]
    best = chosen(trials).recommended
    limit = union_bytes(DESCRIPTION, [best]) + room
    found = chosen(trials, limit)
    assert found.recommended == best
    assert best in found.trials
    assert found.weight_bytes == union_bytes(DESCRIPTION, found.trials) <= limit
    members = compute_front(trials, JOB.spec.objectives).members
    assert sorted([*found.left_out, *(each.number for each in found.trials)]) == sorted(members)
    for number in found.left_out:
        assert union_bytes(DESCRIPTION, [*found.trials, trials[number]]) > limit


def test_under_a_limit_the_best_pair_of_maps_is_found() -> None:
    trials = [
        FULL,
        trial(1, "int8_static int8_static int8_static", 0.5, 0.09),
        trial(2, "int8_dynamic int8_dynamic int8_static", 0.6, 0.01),  # nearly free, and far better
        trial(3, "bf16 bf16 bf16", 0.9, 0.0001),
    ]
    least = union_bytes(DESCRIPTION, [trials[1]])
    assert [each.number for each in chosen(trials, least).trials] == [1]
    assert [each.number for each in chosen(trials, least + 2 * BIAS).trials] == [1, 2]
    assert [each.number for each in chosen(trials, least + 2 * BIAS + 3 * BYTES["bf16"]).trials] == [1, 2, 3]


def test_maps_of_other_runtimes_are_left_out() -> None:
    other = trial(2, "bf16 bf16 bf16", 0.9, 0.0001, backend="onnxruntime")
    found = chosen([FULL, trial(1, "bf16 bf16 fp32", 0.8, 0.001), other])
    assert [each.number for each in found.trials] == [0, 1]
    assert found.left_out == {2: "it runs on onnxruntime"}
    with pytest.raises(ConflictError, match=r"runs on onnxruntime; .* autotune export j --pick 2"):
        chosen([FULL, other])


def test_a_limit_below_the_recommended_map_is_refused() -> None:
    trials = [FULL, trial(1, "int8_static bf16 fp32", 0.5, 0.01)]
    with pytest.raises(ConflictError, match=r"alone takes 0\.0 MiB, but the bundle may take 0\.0"):
        chosen(trials, union_bytes(DESCRIPTION, trials[1:]) - 1)
    large = replace(JOB, description=replace(DESCRIPTION, other_bytes=int(70 * MIB)))
    with pytest.raises(ConflictError, match=r"alone takes 70\.0 MiB, .* may take 60\.0; raise --max-mib"):
        selected(large, trials, (0, 1), int(60 * MIB))


@pytest.mark.parametrize("job", [JOB, replace(JOB, description=None)])
def test_a_job_without_a_map_within_its_limits_has_nothing_to_deploy(job: JobRecord) -> None:
    wrong = trial(0, "fp32 fp32 fp32", 1.0, 0.5)
    with pytest.raises(NoFeasibleMapError, match="job j has no map to deploy"):
        selected(job, [wrong], ())
