import runpy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from autotune.errors import JobSpecError
from autotune.jobs.spec import MAX_BYTES, JobSpec
from dashboard import job_form
from dashboard.tables.trials import trial_frame

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "browser" / "seed.py")))

FORM = job_form.JobForm(
    name="a job",
    task="minilm-lee",
    objectives=("latency_p50_ms", "divergence"),
    limits={"latency_p95_ms": 12.0, "accuracy": 0.7, "peak_memory_mib": None},
    choices=("fp32", "int8_static"),
    sampler="sensitivity",
    trials=50,
    repeats=100,
)


def test_a_form_becomes_a_job_file_that_reads_back() -> None:
    text = job_form.as_text(job_form.document(FORM))
    spec = job_form.read_job(text.encode())
    assert spec.name == "a job"
    assert [str(limit) for limit in spec.constraints.constraints()] == ["accuracy >= 0.7", "latency_p95_ms <= 12"]
    assert spec.search.choices == ("fp32", "int8_static")
    assert (spec.search.trials, spec.search.time_limit_s, spec.measurement.batch_sizes) == (50, None, (1,))


def test_what_is_left_empty_is_left_out() -> None:
    data = job_form.document(replace(FORM, limits={"accuracy": None}))
    assert "constraints" not in data
    assert "parameters" not in data["task"]
    assert not {"layers", "time_limit_s"} & set(data["search"])


def test_parts_in_yaml_become_data() -> None:
    rules = '- {pattern: "*.dense", pin: fp32}'
    form = replace(FORM, parameters="size: 3", layers=rules, batch_sizes="8, 1", time_limit_s=60.0)
    spec = JobSpec.parse(job_form.document(form))
    assert spec.task.parameters == {"size": 3}
    assert spec.search.layers[0].pin == "fp32"
    assert spec.measurement.batch_sizes == (8, 1)
    assert spec.search.time_limit_s == 60.0


@pytest.mark.parametrize(("part", "text"), [("layers", "- {"), ("parameters", "a: &x 1\nb: *x"), ("batch_sizes", "1]")])
def test_a_part_that_is_no_yaml_is_named(part: str, text: str) -> None:
    with pytest.raises(JobSpecError, match=part.replace("_", " ").removesuffix("s")[:5]):
        job_form.document(replace(FORM, **{part: text}))


def test_files_that_are_no_jobs_are_refused_in_words() -> None:
    with pytest.raises(JobSpecError, match=f"at most {MAX_BYTES} bytes"):
        job_form.read_job(b"#" * (MAX_BYTES + 1))
    with pytest.raises(JobSpecError, match="not valid YAML"):
        job_form.read_job(b"\xff\xfe\x00")
    with pytest.raises(JobSpecError, match="name: is required"):
        job_form.read_job(yaml.safe_dump({"task": {"name": "x"}}).encode())


def test_baselines_stand_beside_limits() -> None:
    spec = JobSpec.parse({"name": "a job", "task": {"name": "minilm-lee"}})
    frame = trial_frame([result.trial for result in islice(seed.results(spec, "0001"), 20)])
    assert job_form.baselines_text(frame, "latency_p95_ms") == "fp32 29.6 ms, uniform int8_static 10.5 ms"
    assert job_form.baselines_text(frame, "accuracy") == "fp32 0.7213, uniform bf16 0.7211"
    assert job_form.baselines_text(frame, "latency_p99_ms") == ""
    assert job_form.baselines_text(None, "accuracy") == ""


def test_metrics_that_only_some_tasks_have_are_offered_when_they_are_measured() -> None:
    spec = JobSpec.parse({"name": "a job", "task": {"name": "minilm-lee"}})
    frame = trial_frame([result.trial for result in islice(seed.results(spec, "0001"), 20)])
    assert job_form.special_in(frame) == job_form.special_in(None) == []
    plain = job_form.offered(job_form.OBJECTIVES, [])
    assert {"accuracy", "latency_p95_ms", "peak_memory_mib"} < set(plain)
    assert not any(name.startswith(("shifted", "prefill", "decode")) for name in plain)
    also = set(job_form.offered(job_form.OBJECTIVES, ["shifted", "decode"])) - set(plain)
    assert {"shifted_accuracy", "decode_latency_ratio"} < also
    assert not any(name.startswith("prefill") for name in also)
    assert "queued_latency_p95_ms" in job_form.offered(job_form.LIMITED, ["queued"])
    assert job_form.special_in(frame.assign(shifted_accuracy=0.5)) == ["shifted"]
