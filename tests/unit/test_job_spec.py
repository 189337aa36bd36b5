"""Job files: what they accept, and what people are told about what they do not."""

from pathlib import Path
from typing import Any

import pytest

from autotune.errors import JobSpecError
from autotune.job_spec import MAX_BYTES, JobSpec, SamplerName

MINIMAL: dict[str, Any] = {"name": "job", "task": {"name": "digits-cnn"}}


def error_of(**changes: Any) -> str:
    with pytest.raises(JobSpecError) as caught:
        JobSpec.parse(MINIMAL | changes)
    return str(caught.value)


def load(folder: Path, text: str | bytes) -> JobSpec:
    path = folder / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return JobSpec.load(path)


def test_name_and_task_are_enough() -> None:
    spec = JobSpec.parse(MINIMAL)
    assert spec.backend == "auto"
    assert spec.objectives == ("latency_p50_ms", "accuracy")
    assert spec.constraints.constraints() == ()
    assert (spec.search.sampler, spec.search.trials) == (SamplerName.SENSITIVITY, 100)
    assert (spec.workers.pool, spec.workers.count) == ("ray", 1)


def test_a_job_survives_the_database() -> None:
    spec = JobSpec.parse(
        MINIMAL
        | {
            "objectives": ["latency_p95_ms", "accuracy", "weight_memory_mib"],
            "constraints": {"latency_p95_ms": {"max": 12}, "accuracy": {"min": 0.5}, "accuracy_drop": {"max": 0.0}},
            "search": {"layers": [{"pattern": "a.*", "deny": ["bf16"]}], "time_limit_s": 60, "sampler": "tpe"},
            "workers": {"count": 2, "cpus": 0.5, "gpus": 0.25, "ray_address": "host:6379"},
        }
    )
    assert JobSpec.parse(spec.dump()) == spec


def test_all_errors_are_told_at_once_with_their_paths() -> None:
    message = error_of(search={"trials": 0, "sampler": "magic"}, constraints={"latency_p95_ms": {"max": -3}}, nam="x")
    for part in ("search.trials", "search.sampler", "constraints.latency_p95_ms.max", "nam"):
        assert f"\n  {part}: " in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"constraints": {"latency_p95_ms": {"max": -3}}}, "latency_p95_ms.max: must be greater than 0, but got -3"),
        ({"serch": {}}, "serch: unknown key; did you mean 'search'?"),
        ({"search": {"choises": []}}, "search.choises: unknown key; did you mean 'choices'?"),
        ({"zzz": 1}, "zzz: unknown key; known keys: backend"),
        ({"objectives": ["accuracy"]}, "objectives: must have at least 2 items, but got 1"),
        ({"objectives": ["accuracy", "accuracy"]}, "must not name one metric twice"),
        ({"objectives": ["accuracy", "latency_p51_ms"]}, "unknown metric 'latency_p51_ms'"),
        ({"search": {"choices": ["int9"]}}, "unknown choice 'int9'"),
        ({"search": {"choices": []}}, "must list at least one choice"),
        ({"search": {"layers": [{"pattern": "x"}]}}, "exactly one of allow, deny or pin"),
        ({"search": {"layers": [{"pattern": "x", "pin": "fp32", "deny": ["bf16"]}]}}, "has deny, pin"),
        ({"measurement": {"repeats": 5}}, "measurement.repeats: must be greater than or equal to 20, but got 5"),
        ({"workers": {"gpus": -0.5}}, "workers.gpus: must be greater than or equal to 0, but got -0.5"),
        ({"schema": "autotune.job/v9"}, "schema: must be 'autotune.job/v1', but got 'autotune.job/v9'"),
        ({"task": None}, "task: must be a mapping of keys to values"),
    ],
)
def test_an_error_says_the_rule_and_the_value(changes: dict[str, Any], expected: str) -> None:
    assert expected in error_of(**changes)


@pytest.mark.parametrize("metric", ["latency_p95_ms", "latency_p99_ms"])
def test_percentiles_need_their_samples(metric: str) -> None:
    few = {"repeats": 50}
    assert f"{metric} needs measurement.repeats >= " in error_of(objectives=[metric, "accuracy"], measurement=few)
    assert f"{metric} needs" in error_of(constraints={metric: {"max": 9}}, measurement=few)
    assert JobSpec.parse(MINIMAL | {"objectives": [metric, "accuracy"], "measurement": {"repeats": 500}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must be a mapping"),
        ("- a\n- b\n", "must be a mapping"),
        ("a: [1", "is not valid YAML"),
        (b"\x00\xff\xfe\x81", "is not valid YAML"),
        ("name: a\nname: b\ntask: {name: t}\n", "line 2 has 'name' again"),
        ("name: a\ntask: {name: t, name: u}\n", "line 2 has 'name' again"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "line 2 has one; write the value out"),
        ("[" * 5000 + "]" * 5000, "at most 20 levels"),
        ("name: " + "x" * MAX_BYTES, "at most"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
    ids=["empty", "list", "broken", "binary", "repeated", "repeated inside", "alias", "deep", "large", "code"],
)
def test_files_that_are_no_job_are_refused(tmp_path: Path, text: str | bytes, expected: str) -> None:
    with pytest.raises(JobSpecError, match=expected):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobSpecError, match=r"cannot read job file .*nowhere.yaml.*No such file"):
        JobSpec.load(tmp_path / "nowhere.yaml")
