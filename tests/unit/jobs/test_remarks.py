"""What is said beside a front: failures, limits, a busy machine, doubtful figures and what stays in fp32."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from autotune.jobs.front import ties
from autotune.jobs.records import JobRecord, JobState, TrialKind, TrialRecord, TrialState
from autotune.jobs.remarks import remarks
from autotune.jobs.space import kept_in_full_precision
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from search_spaces.layer import Layer, LayerKind
from workers.measurement import Environment, FailureCause
from workers.setup import Calibration, ModelDescription
from workers.timing.estimates import Figure

HARDWARE = "Some processor, 8 cores"


def layer(name: str, frozen: str | None = None, kind: LayerKind = LayerKind.LINEAR, rows: int = 4) -> Layer:
    return Layer(
        name=name, kind=kind, weight_shape=(rows, 4), has_bias=False, weight_bytes=64, input_shape=(1, 4), flops=32,
        calls=1, order=0, group=name.partition("#")[0], frozen_reason=frozen,
    )  # fmt: skip


def job(
    *layers: Layer,
    task: str = "mine",
    parameters: Mapping[str, Any] | None = None,
    refusals: Mapping[str, Mapping[str, str]] | None = None,
    skipped: Mapping[str, str] | None = None,
    **changes: Any,
) -> JobRecord:
    refused = {each.name: (refusals or {}).get(each.name, {}) for each in layers}
    description = ModelDescription(
        fingerprint="f", layers=layers, refusals=refused, layer_bytes={}, other_bytes=0,
        calibration=Calibration(ranges={}, samples=1, seconds=1.0), skipped=skipped or {},
        environment=Environment(hardware=HARDWARE, backend="x86", threads=2, load=0.1, versions={}),
    )  # fmt: skip
    data = {
        "name": "n",
        "task": {"name": task, "parameters": parameters or {}},
        "workers": {"pool": "inline"},
    } | changes
    spec = JobSpec.parse(data)
    return JobRecord(
        id="ab12", name="n", task=task, document=spec.dump(), state=JobState.FINISHED, created_at=now(),
        updated_at=now(), description=description,
    )  # fmt: skip


def trial(number: int, *, load: float = 0.5, accuracy: float = 0.9, **changes: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "job_id": "ab12", "number": number, "kind": TrialKind.SEARCH, "label": None, "state": TrialState.COMPLETE,
        "choices": {"a": "fp32"}, "key": str(number), "finished_at": now(),
        "figures": {"accuracy": Figure(value=accuracy), "latency_p50_ms": Figure(value=2.0)},
        "environment": {"load": load, "threads": 2, "hardware": HARDWARE},
    }  # fmt: skip
    return TrialRecord(**(values | changes))


def failed(number: int, message: str, kind: TrialKind = TrialKind.SEARCH) -> TrialRecord:
    return trial(
        number, kind=kind, state=TrialState.FAILED, failure=FailureCause.ERROR, message=message, figures={},
        environment={},
    )  # fmt: skip


def test_a_job_without_trouble_needs_no_remark() -> None:
    assert remarks(job(layer("a")), [trial(0), trial(1)]) == []
    assert remarks(job(), []) == []


def test_failed_maps_are_counted_by_message_with_a_trial_to_look_at() -> None:
    trials = [trial(0), failed(1, "no\nkernel."), failed(2, "out of memory"), failed(3, "no kernel")]
    assert remarks(job(layer("a")), trials) == [
        "3 of 4 maps failed: 2 x no kernel, 1 x out of memory; autotune show ab12 1."
    ]
    many = remarks(job(layer("a")), [trial(0), *(failed(n, f"trouble {n}" + "!" * 500) for n in range(1, 9))])[0]
    assert many.startswith("8 of 9 maps failed: 1 x trouble 1!!!")
    assert "5 x others" in many
    assert len(many) < 800


def test_final_measurements_that_fail_or_lack_something_are_reported() -> None:
    lacking = "no held-out accuracy: NotImplementedError: no data yet"
    finals = [failed(2, "lost", TrialKind.FINAL), trial(3, kind=TrialKind.FINAL, message=lacking)]
    assert remarks(job(layer("a")), [trial(0), trial(1), *finals]) == [
        "1 of 2 final measurements failed: 1 x lost; autotune show ab12 2. The figures of these maps are those of the "
        "search.",
        f"1 of 2 final measurements are incomplete: 1 x {lacking}.",
    ]


def test_limits_that_no_map_meets_are_reported_with_the_nearest_miss() -> None:
    limited = job(layer("a"), constraints={"latency_p50_ms": {"max": 1.6}, "accuracy": {"min": 0.5}})
    slow = [trial(n, violations={"latency_p50_ms": 0.5 / n, "accuracy": n - 3.0}) for n in (1, 2, 4)]
    found = remarks(limited, slow)
    assert found == [
        "No map satisfies the constraints. Nearest is trial 2: latency_p50_ms is 2.00 ms, limit 1.60 ms (25 % off). "
        "Of all maps, 3 of 3 miss latency_p50_ms, 1 of 3 miss accuracy."
    ]
    assert remarks(limited, slow, limits=False) == []
    assert remarks(limited, [*slow, trial(5)]) == []


def test_a_map_that_met_the_limits_by_luck_does_not_count() -> None:
    limited = job(layer("a"), constraints={"latency_p50_ms": {"max": 1.6}})
    lucky = trial(1, violations={"latency_p50_ms": -0.1})
    again = trial(2, key=lucky.key, kind=TrialKind.FINAL, violations={"latency_p50_ms": 0.25})
    assert "No map satisfies the constraints. Nearest is trial 2" in remarks(limited, [lucky, again])[0]


@pytest.mark.parametrize(
    ("load", "workers", "busy"),
    [
        (3.9, {"pool": "inline"}, False),
        (4.1, {"pool": "inline"}, True),
        (4.1, {"pool": "inline", "count": 3}, True),
        (7.9, {"pool": "ray", "count": 3}, False),
        (8.1, {"pool": "ray", "count": 3}, True),
    ],
)
def test_a_load_above_that_of_the_job_is_reported(load: float, workers: dict[str, Any], busy: bool) -> None:
    trials = [trial(0, load=50.0), trial(1, load=load), trial(2, load=load), failed(3, "no kernel")]
    found = [remark for remark in remarks(job(layer("a"), workers=workers), trials) if "busy" in remark]
    assert bool(found) == busy
    if busy:
        assert f"load was {load:.1f} in the median trial" in found[0]


@pytest.mark.parametrize("environment", [{}, {"load": 50.0, "threads": 2, "hardware": "A GPU"}, {"threads": 1}])
def test_a_load_that_means_nothing_is_not_reported(environment: dict[str, Any]) -> None:
    assert remarks(job(layer("a")), [trial(0, environment=environment)]) == []


@pytest.mark.parametrize(
    ("perplexity", "rows", "task", "parameters", "told"),
    [
        (703.0, 32000, "causal-lm", {}, True),
        (24.0, 32000, "causal-lm", {}, False),
        (703.0, 256, "causal-lm", {}, False),
        (703.0, 32000, "mine", {}, False),
        (703.0, 32000, "causal-lm", {"questions": "q.jsonl"}, False),
    ],
)
def test_a_perplexity_that_no_trained_model_has_is_reported(
    perplexity: float, rows: int, task: str, parameters: dict[str, str], told: bool
) -> None:
    embedding = layer("words", kind=LayerKind.EMBEDDING, rows=rows)
    record = job(embedding, task=task, parameters=parameters)
    found = remarks(record, [trial(0, accuracy=1.0 / perplexity)])
    assert bool(found) == told
    if told:
        assert found == [
            "Full precision has a perplexity of 703; no trained model has that on natural text. Check tokenizer, "
            "windows and weights."
        ]


def test_layers_that_stay_in_fp32_are_listed_by_reason() -> None:
    idle = "never ran on any of 4 example batches"
    record = job(
        *(layer(f"expert{n}", frozen=idle) for n in range(5)),
        layer("free"),
        skipped={"position": "no quantized kernel replaces Position"},
    )
    assert remarks(record, [trial(0)]) == [
        f"Stays in fp32: expert0, expert1, expert2 and 2 more ({idle}); position (no quantized kernel replaces "
        "Position); autotune show ab12 0 lists every layer."
    ]


def test_layers_kept_in_fp32_by_their_group_are_listed_and_those_kept_by_rules_are_not() -> None:
    layers = [layer("group#1", frozen="never ran"), layer("group#2"), layer("mine"), layer("refused")]
    every = dict.fromkeys(JobSpec.parse({"name": "n", "task": {"name": "t"}}).search.choices, "no kernel")
    record = job(*layers, refusals={"refused": every}, search={"layers": [{"pattern": "mine", "pin": "fp32"}]})
    assert kept_in_full_precision(record) == {
        "group#1": "never ran",
        "group#2": "shares its choice with group#1, which cannot take it",
        "refused": "no kernel",
    }
    unreadable = replace(record, document={"schema": "autotune.job/v9"})
    assert kept_in_full_precision(unreadable) == {"group#1": "never ran"}
    assert kept_in_full_precision(replace(record, description=None)) == {}


def test_ties_are_maps_of_the_front_that_are_not_measurably_faster() -> None:
    def map_of(number: int, ratio: Figure, divergence: float) -> TrialRecord:
        return trial(number, figures={"latency_ratio": ratio, "divergence": Figure(value=divergence)})

    front = [
        map_of(0, Figure(value=1.0), 0.0),
        map_of(1, Figure(value=0.98, low=0.9, high=1.01), 1e-3),
        map_of(2, Figure(value=0.5, low=0.45, high=0.55), 1e-2),
        trial(3),
    ]
    assert ties(front, ["latency_p50_ms", "divergence"]) == {1}
    assert ties([trial(3)], ["latency_p50_ms", "divergence"]) == frozenset()


def test_backends_that_were_left_out_are_named() -> None:
    record = job(layer("a"))
    assert record.description is not None
    record = replace(record, description=replace(record.description, left_out={"onnxruntime": "cannot trace it."}))
    assert remarks(record, [trial(0)]) == ["No map was measured on onnxruntime: cannot trace it."]
