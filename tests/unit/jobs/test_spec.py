"""Job files: what they accept, and the errors for what they do not."""

import json
import math
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import JobSpecError, NotFoundError
from autotune.jobs.spec import MAX_BYTES, JobSpec, RecoverySection, SamplerName
from workers.setup import KnownKernels, MeasurementSettings, PoolSettings, WorkerSetup

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
    assert (spec.schema_, spec.task.parameters) == ("autotune.job/v1", {})
    assert spec.backend == "auto"
    assert spec.objectives == ("latency_p50_ms", "accuracy")
    assert spec.constraints.constraints() == ()
    assert (spec.search.sampler, spec.search.trials) == (SamplerName.SENSITIVITY, 100)
    assert (spec.search.seed, spec.search.time_limit_s, spec.rules()) == (0, None, ())
    assert spec.search.choices[0] == "fp32"
    assert (spec.calibration.observer, spec.calibration.percentile) == ("minmax", 99.99)
    assert spec.worker_setup() == WorkerSetup(task="digits-cnn", measurement=MeasurementSettings(half_width=0.01))
    assert spec.pool_settings() == PoolSettings()
    assert (spec.workers.pool, spec.workers.count) == ("ray", 1)


def test_a_job_may_have_several_backends() -> None:
    spec = JobSpec.parse(MINIMAL | {"backend": ["cpu", "onnxruntime"]})
    assert spec.backends() == ("cpu", "onnxruntime")
    setup = spec.worker_setup()
    assert (setup.backend, dict(setup.others), setup.all_backends) == ("cpu", {"onnxruntime": KnownKernels()}, False)
    assert JobSpec.parse(spec.dump()) == spec
    every = JobSpec.parse(MINIMAL | {"backend": "all"})
    assert every.backends() == ("all",)
    assert (every.worker_setup().backend, every.worker_setup().all_backends) == ("auto", True)


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ([], "backend: must be a backend, a list of backends, or 'all', but got []"),
        (["cpu", "cpu"], "must not contain a backend twice, but got cpu, cpu"),
        (["all", "cpu"], "must be 'all' alone, or a list of backends without it"),
        (3, "backend: must be a backend, a list of backends, or 'all', but got 3"),
    ],
)
def test_a_wrong_list_of_backends_is_refused(backend: object, expected: str) -> None:
    assert expected in error_of(backend=backend)


def test_limits_are_read_with_their_direction() -> None:
    limits = {"peak_memory_mib": {"max": 60}, "accuracy": {"min": 0.5}, "latency_p95_ms": None}
    found = JobSpec.parse(MINIMAL | {"constraints": limits}).constraints.constraints()
    assert [str(limit) for limit in found] == ["accuracy >= 0.5", "peak_memory_mib <= 60"]


def test_a_choice_named_twice_is_searched_once() -> None:
    spec = JobSpec.parse(MINIMAL | {"search": {"choices": ["bf16", "fp32", "bf16"]}})
    assert spec.search.choices == ("bf16", "fp32")


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
    assert JobSpec.parse(json.loads(json.dumps(spec.dump()))) == spec


def test_recovery_without_keys_has_the_defaults_and_a_bare_key_is_refused(tmp_path: Path) -> None:
    text = "name: a\ntask: {name: digits-cnn}\nrecovery:"
    assert load(tmp_path, f"{text} {{}}").recovery == RecoverySection()
    with pytest.raises(JobSpecError, match=r"recovery: must be a mapping .* {} stands for the defaults") as caught:
        load(tmp_path, f"{text}\nbackend: []\n")
    assert "backend:" in str(caught.value)


def test_a_job_without_recovery_survives_the_database_of_any_version() -> None:
    spec = JobSpec.parse(MINIMAL)
    assert "recovery" not in spec.dump()
    assert JobSpec.parse(spec.dump()) == spec
    assert JobSpec.recorded(spec.dump() | {"recovery": None}, "j") == spec


@pytest.mark.parametrize("value", [(1, [2.5, None]), {"inner": {"7": "x"}}, {"inner": {7: "x"}}, "é\n", 10**30, True])
def test_task_parameters_survive_the_database(value: object) -> None:
    spec = JobSpec.parse(MINIMAL | {"task": {"name": "t", "parameters": {"value": value}}})
    assert JobSpec.parse(json.loads(json.dumps(spec.dump()))) == spec


@pytest.mark.parametrize("value", [math.nan, math.inf, date(2026, 1, 2), {1, 2}, b"\x80", "\ud800", "\0", object()])
def test_task_parameters_the_database_cannot_hold_are_refused(value: object) -> None:
    assert "task.parameters: must " in error_of(task={"name": "t", "parameters": {"list": [value]}})


def test_all_errors_are_reported_at_once_with_their_paths() -> None:
    message = error_of(search={"trials": 0, "sampler": "magic"}, constraints={"latency_p95_ms": {"max": -3}}, nam="x")
    for part in ("search.trials", "search.sampler", "constraints.latency_p95_ms.max", "nam"):
        assert f"\n  {part}: " in message
    assert message.startswith("job is not a valid job:\n")
    assert message.count("\n") == 4


def test_every_wrong_name_in_a_list_is_reported() -> None:
    message = error_of(search={"choices": ["int9", "fp32", "int7"], "layers": [{"pattern": "x", "deny": ["int6"]}]})
    for part in ("search.choices.0: unknown choice 'int9'", "choices.2: unknown", "layers.0.deny.0: unknown choice"):
        assert part in message


def test_of_very_many_errors_some_are_reported() -> None:
    message = error_of(**{f"key{number}": 1 for number in range(60)})
    assert message.endswith("\n  and 10 more")
    assert message.count("unknown key") == 50


def test_a_long_value_is_shown_in_part() -> None:
    assert len(error_of(name="x" * 5000)) < 200


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"constraints": {"latency_p95_ms": {"max": -3}}}, "latency_p95_ms.max: must be greater than 0, but got -3"),
        ({"serch": {}}, "serch: unknown key; did you mean 'search'?"),
        ({"search": {"choises": []}}, "search.choises: unknown key; did you mean 'choices'?"),
        ({"zzz": 1}, "zzz: unknown key; known keys: backend"),
        ({"constraints": {"latency_p95": {"max": 1}}}, "latency_p95: unknown key; did you mean 'latency_p95_ms'?"),
        ({"constraints": {"accuracy": {"max": 1}}}, "constraints.accuracy.max: unknown key; known keys: min"),
        ({"search": {"layers": [{"pattern": "x", "alow": []}]}}, "layers.0.alow: unknown key; did you mean 'allow'?"),
        ({"search": {"layers": [{"pin": "fp32"}]}}, "search.layers.0.pattern: is required"),
        ({"search": {"layers": [{"pattern": "x", "allow": ["int8"]}]}}, "unknown choice 'int8'. Known: bf16"),
        (
            {"search": {"sampler": "nsga4"}},
            "must be 'sensitivity', 'nsga2', 'nsga3', 'tpe', 'gp' or 'random', but got 'nsga4'",
        ),
        ({"search": {"time_limit_s": 0}}, "search.time_limit_s: must be greater than 0, but got 0"),
        (
            {"constraints": {"latency_p95_ms": {"max": "9 MiB"}}},
            "latency_p95_ms.max: must be a number of ms, alone or with a unit (us, ms, s), but got '9 MiB'",
        ),
        (
            {"constraints": {"accuracy_drop": {"max": "100%"}}},
            "accuracy_drop.max: must be less than 1, but got 1.0",
        ),
        (
            {"search": {"time_limit_s": "5 minutes"}},
            "search.time_limit_s: must be a number of s, alone or with a unit (ms, s, min, h), but got '5 minutes'",
        ),
        ({"constraints": {"latency_p95_ms": 9}}, "must be a mapping of keys to values, such as {max: 9}, but got 9"),
        ({"search": {"trials": "ten"}}, "search.trials: must be a valid integer, "),
        ({"search": None}, "search: must be a mapping of keys to values, but is empty"),
        ({"constraints": {"accuracy": {"min": math.nan}}}, "accuracy.min: must be a finite number, but got nan"),
        ({"constraints": {"accuracy_drop": {"max": 1}}}, "accuracy_drop.max: must be less than 1, but got 1"),
        ({"calibration": {"percentile": 50}}, "calibration.percentile: must be greater than 50, but got 50"),
        ({"measurement": {"batch_sizes": []}}, "measurement.batch_sizes: must have at least 1 items, but got 0"),
        ({"objectives": "accuracy"}, "objectives: must be a list, but got 'accuracy'"),
        ({"objectives": ["accuracy", "divergence", "latency_ratio", "peak_memory_mib"]}, "at most 3 items, but got 4"),
        ({"name": ""}, "name: must have at least 1 character, but got ''"),
        ({"name": "a\nb"}, r"name: must be one line without control characters, but got 'a\nb'"),
        ({1: 2}, "1: unknown key, which is not text; delete it"),
        ({"objectives": ["accuracy"]}, "objectives: must have at least 2 items, but got 1"),
        ({"objectives": ["accuracy", "accuracy"]}, "must not contain a metric twice"),
        ({"objectives": ["accuracy", "latency_p51_ms"]}, "unknown metric 'latency_p51_ms'; did you mean 'latency_p"),
        ({"search": {"choices": ["int9"]}}, "search.choices.0: unknown choice 'int9'. Known: bf16, fp16, fp32"),
        ({"search": {"choices": []}}, "must list at least one choice"),
        ({"search": {"layers": [{"pattern": "x"}]}}, "exactly one of allow, deny, pin or sensitivity"),
        ({"search": {"layers": [{"pattern": "x", "pin": "fp32", "deny": ["bf16"]}]}}, "has deny, pin"),
        ({"measurement": {"repeats": 5}}, "measurement.repeats: must be greater than or equal to 20, but got 5"),
        ({"workers": {"gpus": -0.5}}, "workers.gpus: must be greater than or equal to 0, but got -0.5"),
        ({"schema": "autotune.job/v9"}, "schema: must be 'autotune.job/v1', but got 'autotune.job/v9'"),
        ({"task": None}, "task: must be a mapping of keys to values"),
    ],
)
def test_an_error_says_the_rule_and_the_value(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(JobSpecError) as caught:
        JobSpec.parse(MINIMAL | changes)
    assert expected in str(caught.value)


@pytest.mark.parametrize(("metric", "needed"), [("latency_p95_ms", 60), ("latency_p99_ms", 500)])
def test_percentiles_need_their_samples(metric: str, needed: int) -> None:
    few, enough = {"repeats": needed - 1}, {"repeats": needed}
    expected = f"{metric} needs measurement.repeats >= {needed}, but got {needed - 1}; raise repeats or use a lower"
    assert expected in error_of(objectives=[metric, "accuracy"], measurement=few)
    assert expected in error_of(constraints={metric: {"max": 9}}, measurement=few)
    assert JobSpec.parse(MINIMAL | {"objectives": [metric, "accuracy"], "measurement": enough})


def test_the_percentile_that_needs_most_is_named() -> None:
    limits = {"latency_p95_ms": {"max": 9}, "latency_p99_ms": {"max": 9}}
    assert "latency_p99_ms needs measurement.repeats >= 500" in error_of(
        constraints=limits, measurement={"repeats": 20}
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must be a mapping"),
        ("- a\n- b\n", "must be a mapping"),
        ("a: [1", "is not valid YAML"),
        (b"\x00\xff\xfe\x81", "is not valid YAML"),
        ("name: a\nname: b\ntask: {name: t}\n", "line 2 repeats 'name'"),
        ("name: a\ntask: {name: t, name: u}\n", "line 2 repeats 'name'"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "line 2 has one; repeat the value instead"),
        ("[" * 5000 + "]" * 5000, "at most 20 levels"),
        ("\n".join(" " * level + "a:" for level in range(300)), "at most 20 levels are allowed, but line 21 goes"),
        ("- " * 1000 + "x", "at most 20 levels"),
        ("name: " + "x" * MAX_BYTES, f"at most {MAX_BYTES} bytes"),
        ("!!python/object/apply:os.system ['true']", "tags are not allowed, but line 1 has one"),
        ("name: a\ntask: !!set [1]", "tags are not allowed, but line 2 has one"),
        ("name: a\n? [b]\n: 1\n", "a key must be text, but the key on line 2"),
        ("name: a\nsearch: {trials: " + "9" * 5000 + "}", "line 2 has an invalid number"),
        ("name: a\n---\nname: b\n", "expected a single document"),
    ],
    ids=["empty", "list", "broken", "binary", "repeated", "repeated inside", "alias", "deep flow", "deep block",
         "deep list", "large", "code", "tag", "list as key", "long number", "two documents"],
)  # fmt: skip
def test_files_that_are_no_job_are_refused(tmp_path: Path, text: str | bytes, expected: str) -> None:
    with pytest.raises(JobSpecError, match=expected):
        load(tmp_path, text)


def test_an_alias_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    begun = time.process_time()
    with pytest.raises(JobSpecError, match="aliases are not allowed, but line 2 has one"):
        load(tmp_path, "\n".join(lines))
    assert time.process_time() - begun < 1


def test_the_longest_file_is_refused_in_seconds(tmp_path: Path) -> None:
    begun = time.process_time()
    with pytest.raises(JobSpecError, match="must be a mapping"):
        load(tmp_path, "[" + "1," * (MAX_BYTES // 2 - 2) + "1]")
    assert time.process_time() - begun < 20


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(JobSpecError, match="at most"):
        JobSpec.load("/dev/zero")


def test_a_twenty_level_job_and_text_like_dates_are_read(tmp_path: Path) -> None:
    deep = "[" * 17 + "1" + "]" * 17
    spec = load(tmp_path, "name: 2026-01-02\ntask: {name: t, parameters: {a: " + deep + "}}\n")
    assert spec.name == "2026-01-02"
    with pytest.raises(JobSpecError, match="at most 20 levels"):
        load(tmp_path, "name: a\ntask: {name: t, parameters: {a: [" + deep + "]}}\n")


def test_the_written_file_loads_to_the_same_job(tmp_path: Path) -> None:
    spec = JobSpec.parse(MINIMAL | {"search": {"layers": [{"pattern": "*.query", "pin": "fp32"}], "seed": 3}})
    assert load(tmp_path, json.dumps(spec.dump())) == spec


def test_the_text_of_a_job_is_short_and_loads_to_the_same_job() -> None:
    search = {"layers": [{"pattern": "*.query", "pin": "fp32"}], "seed": 3}
    changed = {"constraints": {"accuracy_drop": {"max": 0.01}}, "measurement": {"half_width": None}, "search": search}
    spec = JobSpec.parse(MINIMAL | changed)
    assert JobSpec.read(spec.text().encode()) == spec
    assert "objectives: [latency_p50_ms, accuracy]" in spec.text()
    assert "workers" not in spec.text()


def test_limits_that_are_not_set_are_left_out() -> None:
    spec = JobSpec.parse(MINIMAL | {"constraints": {"accuracy_drop": {"max": 0.01}}})
    assert spec.dump()["constraints"] == {"accuracy_drop": {"max": 0.01}}
    assert JobSpec.parse(spec.dump()) == spec


def test_a_folder_is_no_job_file(tmp_path: Path) -> None:
    with pytest.raises(JobSpecError, match="Is a directory"):
        JobSpec.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no job file .*nowhere.yaml"):
        JobSpec.load(tmp_path / "nowhere.yaml")


def test_workers_get_the_cache_of_prepared_layers_in_bytes() -> None:
    spec = JobSpec.parse(
        {"schema": "autotune.job/v1", "name": "small", "task": {"name": "digits-cnn"}, "workers": {"cache_mib": 3}}
    )
    assert spec.worker_setup().cache_bytes == 3 << 20
    assert spec.pool_settings() == PoolSettings()


def test_the_pool_gets_the_wanted_hardware() -> None:
    spec = JobSpec.parse(MINIMAL | {"workers": {"hardware": " EPYC (AVX2) "}})
    assert spec.pool_settings() == PoolSettings(hardware="EPYC (AVX2)")
    assert JobSpec.parse(spec.dump()) == spec
    assert JobSpec.parse(MINIMAL).pool_settings().hardware is None


@pytest.mark.parametrize(
    ("hardware", "error"),
    [
        ("", "at least 1 character"),
        (" ", "must not be blank"),
        ("a\nb", "must be one line"),
        (7, "must be a valid string"),
    ],
)
def test_hardware_that_names_none_is_refused(hardware: object, error: str) -> None:
    with pytest.raises(JobSpecError, match=rf"workers\.hardware: .*{error}"):
        JobSpec.parse(MINIMAL | {"workers": {"hardware": hardware}})


def test_wrong_items_are_not_reported_as_missing_too() -> None:
    with pytest.raises(JobSpecError, match=r"objectives\.0: unknown metric 'latency'") as caught:
        JobSpec.parse({"name": "x", "task": {"name": "y"}, "objectives": ["latency", "accuracy"]})
    assert "items" not in str(caught.value)


def test_limits_and_the_time_limit_may_have_units() -> None:
    constraints = {
        "latency_p95_ms": {"max": "0.02 s"},
        "weight_memory_mib": {"max": "60MiB"},
        "accuracy_drop": {"max": "1%"},
        "accuracy": {"min": "70 %"},
    }
    spec = JobSpec.parse({**MINIMAL, "constraints": constraints, "search": {"time_limit_s": "5 min"}})
    assert list(map(str, spec.constraints.constraints())) == [
        "accuracy >= 0.7",
        "accuracy_drop <= 0.01",
        "latency_p95_ms <= 20",
        "weight_memory_mib <= 60",
    ]
    assert spec.dump()["search"]["time_limit_s"] == 300.0
