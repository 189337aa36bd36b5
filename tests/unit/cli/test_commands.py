"""What commands print and how they end, on a database with one recorded job."""

import json
import re
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import autotune
from autotune.cli.main import app, main
from autotune.cli.service import _most_jobs
from autotune.client.actions import submit
from autotune.jobs import lifecycle
from autotune.jobs.front import compute_front
from autotune.jobs.lifecycle import with_fields
from autotune.jobs.records import JobRecord, JobState, TrialKind, TrialRecord, TrialResult, TrialState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from autotune.store.base import Store
from autotune.store.open import open_store
from workers.device import gpu
from workers.timing.estimates import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]
SPEC = JobSpec.parse(
    {
        "name": "small",
        "task": {"name": "digits-cnn"},
        "objectives": ["latency_p50_ms", "divergence"],
        "constraints": {"latency_p50_ms": {"max": 4.0}},
        "search": {"trials": 2},
    }
)


@pytest.fixture
def run(
    migrated_sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command in this process, in a folder of its own."""
    monkeypatch.setenv("AUTOTUNE_DATABASE", migrated_sqlite_url)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["autotune", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
        return Done(code=code, out=(printed := capsys.readouterr()).out, err=printed.err)

    return run


@pytest.fixture
def complete(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Return what a shell is offered for the last word of a command line."""

    def complete(words: str) -> str:
        monkeypatch.setenv("_AUTOTUNE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        with pytest.raises(SystemExit):
            app(prog_name="autotune")
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return complete


@pytest.fixture
def store(migrated_sqlite_url: str) -> Any:
    with closing(open_store(migrated_sqlite_url)) as opened:
        yield opened


def trial(job_id: str, number: int, ms: float, **changes: Any) -> TrialRecord:
    figures = {
        "latency_p50_ms": ms,
        "divergence": 1e-3,
        "latency_ratio": ms / 20.0,
        "accuracy": 0.9,
        "accuracy_drop": 0.0,
    }
    return TrialRecord(
        job_id=job_id, number=number, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE,
        choices={"fc": "int8_static"}, key=f"k{number}", finished_at=now(),
        violations={"latency_p50_ms": ms / 4.0 - 1.0},
        figures={name: Figure(value=value) for name, value in figures.items()},
    )  # fmt: skip


def running(store: Store, *milliseconds: float) -> JobRecord:
    """A job with a trial for each latency, which this process drives."""
    job = submit(store, SPEC, served=False)
    job = store.change_job(job.id, lifecycle.claimed("host:1:2:x"))
    trials = [trial(job.id, number, ms) for number, ms in enumerate(milliseconds)]
    *first, last = [TrialResult(trial=measured, elapsed_s=1.0) for measured in trials]
    store.record([*first, replace(last, front=compute_front(trials, SPEC.objectives))], epoch=job.epoch)
    return job


def finished(store: Store, *milliseconds: float) -> JobRecord:
    job = running(store, *milliseconds)
    message = "Search finished: all trials of the budget were measured"
    return store.change_job(job.id, lifecycle.settled(job.epoch, JobState.FINISHED, message))


def test_the_version_and_the_help_are_printed(run: Run) -> None:
    assert run("--version").out == f"quant-autotune {autotune.__version__}\n"
    assert run("-h").out == run("--help").out
    assert run("token", "add", "-h").out == run("token", "add", "--help").out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["verify", "nosuch.json"], 3),
        (["run", "nosuch.yaml"], 3),
        (["submit", "nosuch.yaml"], 3),
        (["tasks", "--task-file", "nosuch.py"], 3),
        (["export", "last", "--format", "nosuch"], 2),
        (["export", "last", "--pick", "nosuch"], 2),
        (["show", "last", "9"], 3),
        (["front", "nosuch"], 3),
    ],
)
def test_exit_codes_are_the_documented_ones(run: Run, store: Store, arguments: list[str], code: int) -> None:
    finished(store, 3.0)
    done = run(*arguments)
    assert (done.code, done.out) == (code, "")
    assert "nosuch" in done.err or "no trial 9" in done.err


def test_parameters_of_tasks_are_typed(run: Run) -> None:
    tasks = {task["name"]: task["parameters"] for task in json.loads(run("tasks", "--json").out)["tasks"]}
    assert tasks["causal-lm"]["checkpoint"] == "tiny-llama"
    assert tasks["causal-lm"]["prompt_tokens"] == 64
    assert tasks["image-classification"]["fold_batch_norms"] is True


@pytest.mark.parametrize("arguments", [["schema"], ["init"], ["db", "upgrade"]])
def test_every_command_that_prints_data_prints_json(run: Run, arguments: list[str]) -> None:
    assert json.loads(run(*arguments, "--json").out)


def test_a_finished_job_has_no_time_left(run: Run, store: Store) -> None:
    finished(store, 3.0)
    done = run("watch", "last")
    assert "1/2 · best 3.00 ms · front" in done.err
    assert "left" not in done.err


def test_a_finished_job_is_resumed_only_with_a_higher_budget(run: Run, store: Store) -> None:
    job = finished(store, 3.0, 2.0)
    refused = run("resume", "last")
    assert refused.code == 8
    assert "all trials of the budget were measured" in refused.err
    assert f"autotune plan {job.id} --trials 4" in refused.err
    run("plan", "last", "--trials", "4")
    store.change_job(job.id, with_fields(job.epoch, served=True))
    assert run("resume", "last").code == 0
    assert store.job(job.id).state is JobState.QUEUED


@pytest.mark.parametrize("served", [False, True])
def test_a_job_whose_driver_was_lost_is_interrupted(run: Run, store: Store, served: bool) -> None:
    job = running(store, 3.0)
    assert "running" in run("jobs").out
    gone = now() - timedelta(seconds=1)
    store.change_job(job.id, with_fields(job.epoch, leased_until=gone, served=served))
    assert "interrupted" in run("jobs").out
    assert json.loads(run("jobs", "--json").out)["jobs"][0]["interrupted"]
    way_out = "a controller will take it over" if served else f"autotune resume {job.id}"
    assert way_out in " ".join(run("show", "last").out.split())


def test_a_front_without_maps_says_so_on_lines_of_full_width(run: Run, store: Store) -> None:
    finished(store, 10.5, 9.0)
    lines = run("front", "last").out.splitlines()
    assert "Pareto front of small (latency_p50_ms, divergence)" in lines
    assert "Nearest is trial 1: latency_p50_ms is 9.00 ms, limit 4.00 ms (2.2x the limit)" in " ".join(
        " ".join(lines).split()
    )


def test_speedups_have_one_form(run: Run, store: Store) -> None:
    finished(store, 3.0, 2.0)
    assert "10.00x as fast" in run("show", "last", "1").out
    assert "10.00x" in run("front", "last").out


def test_a_trial_has_one_name_and_ordered_figures(run: Run, store: Store) -> None:
    finished(store, 3.0, 2.0)
    lines = run("show", "last", "1").out.splitlines()
    headings = [line.partition("  ")[0] for line in lines[:6]]
    assert headings == [
        "trial",
        "Latency p50",
        "Latency p50 relative to full precision",
        "Accuracy",
        "Accuracy drop, relative",
        "Divergence from full precision",
    ]


def test_a_job_is_shown_with_its_job_file(run: Run, store: Store) -> None:
    finished(store, 3.0)
    out = run("show", "last").out
    assert "task: {name: digits-cnn}" in out
    assert "latency_p50_ms: {max: 4.0}" in out


@pytest.mark.parametrize("options", [[], ["--full"]])
def test_the_first_job_file_is_short_valid_and_aligned(run: Run, tmp_path: Path, options: list[str]) -> None:
    run("init", *options)
    text = (tmp_path / "job.yaml").read_text()
    spec = JobSpec.load(tmp_path / "job.yaml")
    assert (spec.workers.pool, spec.search.trials) == ("inline", 30)
    assert (len(text.splitlines()) <= 20) == (not options)
    settings = [line for line in text.splitlines() if re.match(r" *[a-z_]+: .* #", line)]
    assert len({line.index(" #") for line in settings}) == 1


def test_jobs_are_listed_by_state(run: Run, store: Store) -> None:
    job = finished(store, 3.0)
    assert job.id in run("jobs", "--state", "finished").out
    assert run("jobs", "--state", "failed").out == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("autotune show ", {"last", "small"}),
        ("autotune front sm", {"small"}),
        ("autotune export last --pick s", {"smallest"}),
        ("autotune export last --format on", {"onnxruntime"}),
        ("autotune init --task digits-", {"digits-cnn", "digits-vit"}),
        ("autotune jobs --state p", {"paused"}),
    ],
)
def test_shells_complete_values(complete: Callable[[str], str], store: Store, words: str, expected: set[str]) -> None:
    job = finished(store, 3.0)
    assert set(complete(words).split()) - {job.id} == expected


def test_nothing_is_completed_where_there_is_no_database(
    complete: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_DATABASE", "sqlite:///gone.db")
    assert complete("autotune show ").strip() == ""


@pytest.mark.parametrize(
    ("ray_address", "gpus", "expected"), [(None, (), 1), (None, ("H100",), 4), ("head:6379", (), 4)]
)
def test_jobs_on_one_cpu_run_one_by_one(
    monkeypatch: pytest.MonkeyPatch, ray_address: str | None, gpus: tuple[str, ...], expected: int
) -> None:
    monkeypatch.setattr(gpu, "models", lambda: gpus)
    assert _most_jobs(ray_address) == expected


def test_errors_in_json_list_the_wrong_fields(run: Run, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x\ntask: {name: digits-cnn}\nsearch: {trails: 3}\n")
    done = run("submit", "job.yaml", "--json")
    error = json.loads(done.err)["error"]
    assert (done.code, error["kind"]) == (2, "JobSpecError")
    assert [(one["path"], one["suggestion"]) for one in error["errors"]] == [("search.trails", "trials")]


def test_watching_a_job_whose_driver_was_lost_says_how_to_continue(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(store, 3.0)
    store.change_job(job.id, with_fields(job.epoch, leased_until=now() - timedelta(seconds=1)))

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autotune.client.follow.time.sleep", interrupt)
    done = run("watch", "last")
    assert done.code == 130
    assert f"The job's driver was lost; continue it with: autotune resume {job.id}" in done.err
