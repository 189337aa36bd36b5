"""The job of ``tune``."""

from typing import Any

import pytest

from autotune.errors import JobSpecError
from autotune.tuning.job import Settings, job_of

TASK = {"name": "digits-cnn"}


def test_limits_are_largest_values_except_for_accuracies() -> None:
    limits = {"accuracy_drop": 0.01, "accuracy": 0.9, "latency_p50_ms": {"max": "3ms"}}
    spec = job_of("x", TASK, Settings(limits=limits, budget=90))
    assert list(map(str, spec.constraints.constraints())) == [
        "accuracy >= 0.9",
        "accuracy_drop <= 0.01",
        "latency_p50_ms <= 3",
    ]
    assert spec.search.time_limit_s == 90


def test_a_job_measures_in_this_process_unless_workers_are_wanted() -> None:
    wanted = (Settings(), Settings(workers=4), Settings(ray_address="auto"))
    here, four, elsewhere = (job_of("x", TASK, settings).workers for settings in wanted)
    assert here.pool == "inline"
    assert (four.pool, four.count, four.ray_address) == ("ray", 4, "local")
    assert (elsewhere.pool, elsewhere.count, elsewhere.ray_address) == ("ray", 1, "auto")


@pytest.mark.parametrize(
    ("wanted", "searched"), [(None, ("auto",)), ("all", ("all",)), (["cpu", "openvino"], ("cpu", "openvino"))]
)
def test_backends_are_those_that_are_wanted(wanted: Any, searched: tuple[str, ...]) -> None:
    assert job_of("x", TASK, Settings(backend=wanted)).backends() == searched


def test_keys_of_a_job_file_win_at_every_level() -> None:
    job = {"search": {"trials": 7}, "name": "y", "backend": "cpu"}
    spec = job_of("x", TASK, Settings(budget=60, job=job))
    assert (spec.name, spec.backend, spec.search.trials, spec.search.time_limit_s) == ("y", "cpu", 7, 60)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param({"limits": {"acuracy_drop": 0.01}}, "did you mean 'accuracy_drop'", id="metric"),
        pytest.param({"limits": {"accuracy_drop": 2}}, "accuracy_drop.max: must be less than 1, but got 2", id="limit"),
        pytest.param({"backend": ["cpu", "all"]}, "must be 'all' alone", id="backend"),
        pytest.param({"job": {"search": 3}}, "search must be a mapping of keys to values, but got 3", id="section"),
        pytest.param({"job": {"serch": {}}}, "did you mean 'search'", id="key"),
    ],
)
def test_wrong_jobs_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(JobSpecError, match=complaint):
        job_of("x", TASK, Settings(**arguments))
