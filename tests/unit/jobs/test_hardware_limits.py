"""What hardware cannot do, and why nothing is faster."""

from typing import Any

import pytest

from autotune.cli.doctor import machine_limits
from autotune.jobs.hardware_limits import hardware_limits, limits_of_job, why_nothing_is_faster
from autotune.jobs.records import JobRecord, JobState, TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from search_spaces.layer import Layer, LayerKind
from workers.device.processor import MASK
from workers.measurement import Environment
from workers.setup import Calibration, ModelDescription
from workers.timing.estimates import Figure

LACKS = "needs a feature, which this processor lacks"


def layer(name: str, frozen_reason: str | None = None) -> Layer:
    return Layer(
        name=name, kind=LayerKind.LINEAR, weight_shape=(4, 4), has_bias=False, weight_bytes=64, input_shape=(1, 4),
        flops=32, calls=1, order=0, group=name, frozen_reason=frozen_reason,
    )  # fmt: skip


def job(refusals: dict[str, dict[str, str]], bits: int = 8, **changes: Any) -> JobRecord:
    layers = (*map(layer, refusals), layer("head", "is tied"))
    description = ModelDescription(
        fingerprint="f", layers=layers, refusals=refusals, layer_bytes={}, other_bytes=0,
        calibration=Calibration(ranges={}, samples=1, seconds=1.0), weight_bits=dict.fromkeys(refusals, bits),
        environment=Environment(hardware="cpu", backend="cpu", threads=2, load=0.1, versions={}),
    )  # fmt: skip
    spec = JobSpec.parse({"name": "n", "task": {"name": "t"}, "objectives": ["latency_p50_ms", "divergence"]} | changes)
    return JobRecord(
        id="ab12", name="n", task="t", document=spec.dump(), state=JobState.FINISHED, created_at=now(),
        updated_at=now(), description=description,
    )  # fmt: skip


def trial(number: int, ratio: float, full_ms: float = 20.0, drop: float = 0.0) -> TrialRecord:
    figures = {"latency_p50_ms": ratio * full_ms, "latency_ratio": ratio, "accuracy_drop": drop}
    return TrialRecord(
        job_id="ab12", number=number, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices={},
        key=str(number), finished_at=now(), violations={"accuracy_drop": drop - 0.01},
        figures={name: Figure(value=value) for name, value in figures.items()},
    )  # fmt: skip


def test_choices_that_no_free_layer_can_take_are_told_with_the_reason() -> None:
    every, some = {"bf16": LACKS, "fp16": LACKS}, {"int4_weight_only": "needs other sizes"}
    assert limits_of_job(job({"a": every | some, "b": every})) == [f"No layer can take bf16 or fp16 here: {LACKS}."]
    assert limits_of_job(job({"a": every, "b": {}})) == []
    assert "7-bit weights" in limits_of_job(job({"a": {}}, bits=7))[0]


def test_a_processor_with_avx2_alone_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MASK, "avx2")
    bf16, int8 = machine_limits(("cpu",), ["fp32", "bf16", "int8_static"])
    assert bf16.startswith("No layer can take bf16 here: needs AVX512-BF16 or AMX")
    assert int8.startswith("int8 products use 7-bit weights")
    assert hardware_limits({}, 8) == []


@pytest.mark.parametrize(
    ("ratios", "full_ms", "says"),
    [
        ([1.0, 1.2], 20.0, "No map is measurably faster than full precision. What each layer would save"),
        ([1.0, 1.2], 0.1, "No map is measurably faster than full precision. Its 2 layers are small: a pass"),
        ([1.0, 0.8], 20.0, None),
        ([1.0], 20.0, None),
    ],
)
def test_why_nothing_is_faster(ratios: list[float], full_ms: float, says: str | None) -> None:
    trials = [trial(number, ratio, full_ms) for number, ratio in enumerate(ratios)]
    found = list(why_nothing_is_faster(job({"a": {}}), trials))
    assert [text[: len(says or "")] for text in found] == ([says] if says else [])


def test_a_faster_map_that_misses_a_limit_is_the_reason() -> None:
    limited = job({"a": {}}, constraints={"accuracy_drop": {"max": 0.01}})
    assert list(why_nothing_is_faster(limited, [trial(0, 1.0), trial(1, 0.5, drop=0.03)])) == [
        "No map within the limits is measurably faster than full precision. Trial 1 is 2.00x as fast, "
        "but misses a limit: accuracy_drop is 3.00 %, limit 1.00 % (3.0x the limit)."
    ]


def test_a_map_that_is_only_perhaps_faster_is_not_called_slower() -> None:
    perhaps = trial(1, 0.6)
    perhaps.figures["latency_ratio"] = Figure(value=0.6, low=0.5, high=1.1)  # type: ignore[index]
    (text,) = why_nothing_is_faster(job({"a": {}}), [trial(0, 1.0), perhaps])
    assert text.startswith("No map is measurably faster than full precision.")
