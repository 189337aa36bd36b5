"""The backends of a job: those that compete, those that were left out, and what each is worth."""

from typing import Any

from autotune.jobs.backends import competing, left_out, worth_of_backends
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from workers.measurement import Environment, Workload
from workers.setup import BackendDescription, Calibration, ModelDescription
from workers.timing.estimates import Figure


def environment(backend: str) -> Environment:
    return Environment(hardware="cpu", backend=backend, threads=2, load=0.5, versions={})


def described(**changes: Any) -> ModelDescription:
    other = BackendDescription(refusals={}, layer_bytes={}, other_bytes=0, environment=environment("onnxruntime"))
    fields: dict[str, Any] = {
        "fingerprint": "f", "layers": (), "refusals": {}, "layer_bytes": {}, "other_bytes": 0,
        "calibration": Calibration(ranges={}, samples=1, seconds=1.0), "environment": environment("cpu"),
        "others": {"onnxruntime": other}, "left_out": {"openvino": "it cannot read this graph"},
    }  # fmt: skip
    return ModelDescription(**fields | changes)


def spec(objective: str = "latency_p50_ms") -> JobSpec:
    backends = ["cpu", "onnxruntime", "openvino"]
    return JobSpec.parse(
        {"name": "n", "task": {"name": "t"}, "backend": backends, "objectives": [objective, "divergence"]}
    )


def trial(number: int, ratio: float, choices: dict[str, str], backend: str = "", **changes: Any) -> TrialRecord:
    fields: dict[str, Any] = {
        "job_id": "j", "number": number, "kind": TrialKind.BASELINE, "label": "fp32", "state": TrialState.COMPLETE,
        "choices": choices, "backend": backend, "key": f"{number}", "finished_at": now(),
        "environment": {"backend": backend or "cpu"}, "figures": {"latency_ratio": Figure(value=ratio)},
    }  # fmt: skip
    return TrialRecord(**fields | changes)


def test_backends_that_cannot_run_the_model_are_left_out() -> None:
    assert competing(spec(), described()) == ["cpu", "onnxruntime"]
    assert left_out(spec(), described()) == {"openvino": "it cannot read this graph"}


def test_backends_without_a_workload_that_the_job_needs_are_left_out() -> None:
    decodes = spec("decode_latency_p50_ms")
    decoder = described(workloads=(Workload.DECODE,))
    assert competing(decodes, decoder) == ["cpu"]
    assert left_out(decodes, decoder)["onnxruntime"] == (
        "it runs the forward pass only, and the job needs the workload decode"
    )


def test_what_a_backend_is_worth_is_told_of_equal_maps_only() -> None:
    full, mixed = {"a": "fp32", "b": "fp32"}, {"a": "bf16", "b": "fp32"}
    trials = [
        trial(0, 1.0, full),
        trial(1, 0.5, full, "onnxruntime"),
        trial(2, 0.8, {"a": "int8_static", "b": "int8_static"}, label="uniform int8_static"),
        trial(3, 0.4, {"a": "int8_static", "b": "fp32"}, "onnxruntime", label="uniform int8_static"),
        trial(4, 0.7, mixed, label=None),
        trial(5, 0.35, dict(reversed(mixed.items())), "onnxruntime", label=None),
        trial(6, 0.1, full, "openvino", state=TrialState.REJECTED),
        trial(7, 0.9, mixed, label=None, kind=TrialKind.RECOVERED, parent=4),
    ]
    assert worth_of_backends(trials, ["latency_p50_ms", "divergence"]) == [
        "fp32: 1.00x on cpu, 2.00x on onnxruntime",
        "the map of trial 4: 1.43x on cpu, 2.86x on onnxruntime",
    ]
    assert worth_of_backends(trials[2:4], ["latency_p50_ms", "divergence"]) == []
