"""The contract of ``autotune.client.base.Client``: the same calls on a database and through the HTTP API."""

import dataclasses
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autotune.api.server import ApiServer
from autotune.api.settings import ApiSettings
from autotune.client.base import Client
from autotune.client.connect import connect
from autotune.client.local import LocalClient
from autotune.client.remote import RemoteRecords
from autotune.client.tokens import add_token
from autotune.errors import ConflictError, JobFailedError, JobSpecError, NotFoundError, StoreError
from autotune.jobs import lifecycle
from autotune.jobs.lifecycle import OrderedError
from autotune.jobs.records import (
    Artifact,
    ArtifactKind,
    FrontRecord,
    JobRecord,
    JobStage,
    JobState,
    Scope,
    Tally,
    TrialKind,
    TrialRecord,
    TrialResult,
    TrialState,
)
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import event
from autotune.maps import map_file
from autotune.store.base import Store
from autotune.store.open import open_store
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.measurement import Environment, FailureCause, LatencySamples, Workload
from workers.recovered import RecoveryReport, RecoverySettings, digest
from workers.setup import Calibration, Estimator, LayerProbe, ModelDescription, Probes
from workers.timing.estimates import Figure

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
NASTY = "<script>alert('é')</script>; DROP TABLE jobs; -- / \U0001f600"


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    opened = open_store(request.getfixturevalue(f"migrated_{request.param}_url"))
    yield opened
    opened.close()


@pytest.fixture(params=["local", "http"])
def client(request: pytest.FixtureRequest, store: Store) -> Iterator[Client]:
    if request.param == "local":
        yield LocalClient(store)
        return
    token = add_token(store, "local", scope=Scope.ADMIN).text
    server = ApiServer(store, "sqlite:///unused", ApiSettings(port=0))
    server.start()
    opened = connect(server.url, token=token)
    yield opened
    opened.close()
    server.stop()


def spec(**changes: Any) -> JobSpec:
    return JobSpec.parse({"name": NASTY, "task": {"name": "digits-cnn"}, "search": {"trials": 9}} | changes)


def description() -> ModelDescription:
    layer = Layer(
        name="fc", kind=LayerKind.LINEAR, weight_shape=(4, 3), has_bias=True, weight_bytes=64, input_shape=(2, 3),
        flops=48, calls=1, order=0, group="fc",
    )  # fmt: skip
    return ModelDescription(
        fingerprint="f" * 64,
        layers=(layer,),
        refusals={"fc": {"fp16": "no kernel"}},
        layer_bytes={"fc": {"fp32": 64}},
        other_bytes=8,
        calibration=Calibration(
            ranges={"fc": ActivationRange(low=-1.5, high=2.25)}, samples=64, seconds=0.5, clipped={"fc": 1 / 3}
        ),
        environment=Environment(hardware="cpu", backend="x86", threads=2, load=0.5, versions={"torch": "2"}),
    )


def trial(job_id: str, number: int, **changes: Any) -> TrialRecord:
    fields: dict[str, Any] = {
        "job_id": job_id,
        "number": number,
        "kind": TrialKind.SEARCH,
        "label": None,
        "state": TrialState.COMPLETE,
        "choices": {"fc": "int8_static", NASTY: "fp32"},
        "key": f"{number:032x}",
        "figures": {
            "accuracy": Figure(value=0.1 + 0.2),
            "latency_p50_ms": Figure(value=1 / (number + 3), low=0.3, high=None),
        },
        "violations": {"latency_p50_ms": -0.25},
        "sampler_state": {"NSGAIISampler:generation": [3, None]},
        "environment": {"hardware": "cpu", "versions": {"torch": "2"}},
        "worker": "inline:1",
        "seconds": 1.5,
        "forward_seconds": 1 / 3,
        "finished_at": AT + timedelta(seconds=number),
    }
    return TrialRecord(**fields | changes)


def samples() -> tuple[LatencySamples, ...]:
    generator = np.random.default_rng(0)
    return tuple(
        LatencySamples(
            batch_size=size, workload=workload, candidate_ms=generator.random(100), reference_ms=generator.random(20)
        )
        for size, workload in ((8, Workload.FORWARD), (1, Workload.DECODE))
    )


def claim(store: Store, job: JobRecord) -> JobRecord:
    return store.change_job(job.id, lifecycle.claimed("h:1:2:x"))


def running_job(client: Client, store: Store, trials: int = 3) -> JobRecord:
    """A job with a description, trials, latencies, fronts and events."""
    job = claim(store, client.submit(spec()))
    store.change_job(job.id, lifecycle.with_fields(job.epoch, event("probed", NASTY), description=description()))
    results = [
        TrialResult(
            trial=trial(job.id, number),
            latency=samples() if number == 0 else (),
            front=FrontRecord(trials=number + 1, members=tuple(range(number + 1)), hypervolume=number / 3),
            elapsed_s=0.5,
        )
        for number in range(trials)
    ]
    store.record(results, epoch=job.epoch)
    return store.job(job.id)


def test_records_are_the_stored_ones(client: Client, store: Store) -> None:
    job = running_job(client, store)
    failed = trial(
        job.id, 7, kind=TrialKind.BASELINE, label="uniform", state=TrialState.FAILED, figures={}, violations={},
        failure=FailureCause.CRASH, message=NASTY,
    )  # fmt: skip
    learned = Artifact(sha256=digest(b"x"), kind=ArtifactKind.LEARNED_WEIGHTS, data=b"x")
    recovery = RecoveryReport(
        method="blocks", settings=RecoverySettings(), seconds=1 / 3, samples=48, validation_samples=16, before=0.3,
        after=0.1, layers=("fc",), kept={NASTY: NASTY}, sha256=learned.sha256, nbytes=1,
    )  # fmt: skip
    recovered = trial(job.id, 8, kind=TrialKind.RECOVERED, parent=0, recovery=recovery)
    store.record([TrialResult(trial=failed), TrialResult(trial=recovered, artifacts=(learned,))], epoch=job.epoch)
    assert client.records.latency(job.id, 8)[0].candidate_ms.tolist() == samples()[0].candidate_ms.tolist()
    assert client.records.job(job.id) == store.job(job.id)
    assert client.records.jobs() == store.jobs()
    assert client.records.trials(job.id) == store.trials(job.id)
    assert client.records.trials(job.id)[-2:] == [failed, recovered]
    assert client.records.fronts(job.id) == store.fronts(job.id)
    assert client.records.events(job.id) == store.events(job.id)
    assert client.records.tallies([job.id, "gone"]) == {job.id: Tally(searched=4, front=(0, 1, 2)), "gone": Tally()}


def test_latencies_keep_every_bit(client: Client, store: Store) -> None:
    job = running_job(client, store)
    for found, expected in zip(client.records.latency(job.id, 0), samples(), strict=True):
        assert (found.batch_size, found.workload) == (expected.batch_size, expected.workload)
        np.testing.assert_array_equal(found.candidate_ms, expected.candidate_ms)
        np.testing.assert_array_equal(found.reference_ms, expected.reference_ms)
    assert client.records.latency(job.id, 1) == ()


def test_artifacts_come_by_hash(client: Client, store: Store) -> None:
    job = running_job(client, store)
    data = bytes(range(256)) * 100
    kept = Artifact(sha256=digest(data), kind=ArtifactKind.LEARNED_WEIGHTS, data=data)
    store.record([TrialResult(trial=trial(job.id, 3), artifacts=(kept,))], epoch=job.epoch)
    assert client.records.artifact(kept.sha256) == data
    with pytest.raises(NotFoundError, match=f"no artifact '{digest(b'')}'"):
        client.records.artifact(digest(b""))


def test_a_file_that_is_changed_on_its_way_is_told_apart() -> None:
    records = RemoteRecords(SimpleNamespace(get_bytes=lambda path: b"other"))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=f"{digest(b'learned')} was changed"):
        records.artifact(digest(b"learned"))


def test_probes_come_by_key(client: Client, store: Store) -> None:
    probes = Probes(
        layers=(
            LayerProbe(layer="fc", choice="fp32", divergence=1 / 3, latency_ms=0.1),
            LayerProbe(layer="fc", choice="int8_static", divergence=math.inf, latency_ms=0.1),
        ),
        pass_ms=0.1 + 0.2,
        estimator=Estimator.LOCAL,
        samples=12,
        seconds=1 / 3,
    )
    store.record_probes("key", probes)
    assert client.records.probes("key") == probes
    assert client.records.probes("other") is None


def test_jobs_are_paged_and_filtered(client: Client) -> None:
    ids = [client.submit(spec(name=f"job {number}")).id for number in range(52)][::-1]
    client.cancel(ids[3])
    assert [job.id for job in client.records.jobs()] == ids
    assert [job.id for job in client.records.jobs(limit=2)] == ids[:2]
    assert [job.id for job in client.records.jobs(after=ids[1], limit=3)] == ids[2:5]
    assert [job.id for job in client.records.jobs(state=JobState.CANCELLED)] == [ids[3]]
    with pytest.raises(NotFoundError):
        client.records.jobs(after="gone")


def test_trials_are_paged_and_chosen(client: Client, store: Store) -> None:
    job = running_job(client, store, trials=230)

    def numbers(**choice: Any) -> list[int]:
        return [trial.number for trial in client.records.trials(job.id, **choice)]

    assert numbers() == list(range(230))
    assert numbers(after=100, limit=3) == [101, 102, 103]
    assert numbers(numbers=[5, 2, 999]) == [2, 5]
    assert numbers(numbers=range(229, -1, -1)) == list(range(230))
    assert numbers(numbers=[]) == []
    assert [event.kind for event in client.records.events(job.id, start=1)] == ["probed"]


@pytest.mark.parametrize("call", ["pause", "cancel", "resume", "clone", "find"])
def test_unknown_job_is_not_found(client: Client, call: str) -> None:
    with pytest.raises(NotFoundError, match="'gone'"):
        getattr(client, call)("gone")


@pytest.mark.parametrize("read", ["job", "trials", "fronts", "events"])
def test_records_of_an_unknown_job_are_not_found(client: Client, read: str) -> None:
    with pytest.raises(NotFoundError, match="'gone'"):
        getattr(client.records, read)("gone")


def test_jobs_are_found_by_name(client: Client) -> None:
    first, second = client.submit(spec()), client.submit(spec(name="other"))
    assert client.find(NASTY) == first
    assert client.find("last") == second
    assert client.find(second.id[:7]) == second


def test_the_same_key_is_the_same_job(client: Client) -> None:
    job = client.submit(spec(), key="é 1/2", priority=3)
    assert client.submit(spec(), key="é 1/2", priority=3) == job
    assert (job.priority, job.served, job.owner) == (3, True, "local")
    with pytest.raises(ConflictError, match="the key 'é 1/2' was already used"):
        client.submit(spec(name="other"), key="é 1/2")
    assert client.clone(job.id, key="c") == client.clone(job.id, key="c") != job
    assert len({client.submit(spec()).id for _ in range(3)}) == 3


def test_a_key_from_32_threads_is_one_job(client: Client) -> None:
    barrier = threading.Barrier(32)

    def submit(number: int) -> str:
        barrier.wait()
        return client.submit(spec(), key="shared").id

    with ThreadPoolExecutor(32) as threads:
        ids = set(threads.map(submit, range(32)))
    assert ids == {job.id for job in client.records.jobs()}
    assert len(ids) == 1


@pytest.mark.parametrize("wrong", [{"key": ""}, {"key": "k" * 256}, {"key": "a\nb"}, {"priority": 2000}])
def test_wrong_submission_is_refused(client: Client, wrong: dict[str, Any]) -> None:
    with pytest.raises(JobSpecError):
        client.submit(spec(), **wrong)
    assert client.records.jobs() == []


def test_a_job_is_submitted_as_a_file_its_content_or_parsed(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(spec().text())
    jobs = [client.submit(job) for job in (path, str(path), spec().dump(), spec())]
    assert {job.document["search"]["trials"] for job in jobs} == {9}
    assert len({job.id for job in jobs}) == 4
    with pytest.raises(JobSpecError, match=r"a job must be the path of a job file, a mapping or a JobSpec, but got 7"):
        client.submit(7)  # type: ignore[arg-type]
    with pytest.raises(JobSpecError) as caught:
        client.submit({"name": "x", "task": {"name": "digits-cnn"}, "search": {"trails": 1}})
    assert [(error.path, error.suggestion) for error in caught.value.errors] == [("search.trails", "trials")]


def test_results_are_waited_for_listed_and_exported(client: Client, store: Store, tmp_path: Path) -> None:
    job = running_job(client, store)
    store.change_job(job.id, lifecycle.settled(job.epoch, JobState.FINISHED, "Search finished"))
    assert client.wait(job.id).state is JobState.FINISHED
    front = client.front("last")
    assert [trial.number for trial in front] == [2, 1, 0]  # by latency
    assert client.front(client.submit(spec()).id) == []
    with pytest.raises(NotFoundError):
        client.front("gone")


def test_a_map_is_exported_to_a_file(client: Client, store: Store, tmp_path: Path) -> None:
    job = running_job(client, store, trials=1)
    store.record([TrialResult(trial=trial(job.id, 1, choices={"fc": "int8_static"}))], epoch=job.epoch)
    path = client.export(job.id, tmp_path / "map.json", choose="1")
    file = map_file.read(path)
    assert (file.provenance.job, file.provenance.trial) == (job.id, 1)
    with pytest.raises(JobSpecError, match="unknown pick 'best'"):
        client.export(job.id, path, choose="best")


def test_a_recovered_map_is_exported_with_its_learned_weights(client: Client, store: Store, tmp_path: Path) -> None:
    job = running_job(client, store, trials=1)
    learned = Artifact(sha256=digest(b"learned"), kind=ArtifactKind.LEARNED_WEIGHTS, data=b"learned")
    recovery = RecoveryReport(
        method="blocks", settings=RecoverySettings(), seconds=1.0, samples=48, validation_samples=16, before=0.2,
        after=0.1, layers=("fc",), kept={}, sha256=learned.sha256, nbytes=7,
    )  # fmt: skip
    recovered = trial(job.id, 1, choices={"fc": "int8_static"}, kind=TrialKind.RECOVERED, parent=0, recovery=recovery)
    store.record([TrialResult(trial=recovered, artifacts=(learned,))], epoch=job.epoch)
    path = client.export(job.id, tmp_path / "maps" / "best.json", choose="1")
    assert map_file.read(path).learned == b"learned"
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "best.json", f"map-{learned.sha256[:12]}.safetensors",
    ]  # fmt: skip


def test_waiting_for_a_job_that_ends_otherwise_says_how(client: Client, store: Store) -> None:
    job = client.submit(spec())
    client.cancel(job.id)
    with pytest.raises(OrderedError, match="cancelled by its user"):
        client.wait(job.id)
    failed = claim(store, client.submit(spec()))
    store.change_job(failed.id, lifecycle.settled(failed.epoch, JobState.FAILED, "it broke", error="it broke"))
    with pytest.raises(JobFailedError, match="it broke"):
        client.wait(failed.id)


def test_followers_get_each_trial_once_in_whatever_order_they_are_recorded(client: Client, store: Store) -> None:
    job = running_job(client, store)
    updates = client.follow(job.id)
    first = next(updates)
    assert [news.number for news in first.trials] == [0, 1, 2]
    assert [news.on_front for news in first.trials] == [True, True, True]
    assert first.trials[0].figures["latency_p50_ms"] == pytest.approx(1 / 3)
    told = []
    for number in (4, 3):
        store.record([TrialResult(trial=trial(job.id, number))], epoch=job.epoch)
        update = next(updates)
        told.append([news.number for news in update.trials])
        assert update.kind == "trial"
    assert told == [[4], [3]]


def test_a_record_of_a_job_is_short_to_read(client: Client, store: Store) -> None:
    assert len(repr(running_job(client, store))) < 1000


def test_jobs_are_steered(client: Client, store: Store) -> None:
    job = client.submit(spec())
    assert client.pause(job.id).state is JobState.PAUSED
    assert client.resume(job.id).state is JobState.QUEUED
    claim(store, job)
    assert client.pause(job.id).state is JobState.RUNNING
    assert client.cancel(job.id) == client.cancel(job.id) == store.job(job.id)
    with pytest.raises(ConflictError, match="is being cancelled"):
        client.pause(job.id)


def test_plans_change(client: Client) -> None:
    job = client.submit(spec())
    changed = client.change_plan(job.id, priority=5, trials=20, time_limit_s=1.5)
    assert (changed.priority, changed.spec.search.trials, changed.spec.search.time_limit_s) == (5, 20, 1.5)
    assert client.change_plan(job.id, time_limit_s=None).spec.search.time_limit_s is None
    with pytest.raises(JobSpecError, match=r"search\.trials: must be greater than or equal to 1, but got 0"):
        client.change_plan(job.id, trials=0)
    assert client.change_plan(job.id).version == 2


def test_following_ends_with_the_job(client: Client, store: Store) -> None:
    job = running_job(client, store)
    updates = client.follow(job.id)
    first = next(updates)
    store.change_job(job.id, lifecycle.settled(job.epoch, JobState.FINISHED, "Search finished"))
    *_, last = updates
    assert (first.state, first.progress.done, first.progress.budget) == (JobState.RUNNING, 3, 9)
    assert first.progress.front_size == 3
    assert first.progress.best == store.trials(job.id)[2]
    assert first.position == 2
    assert last.state is JobState.FINISHED
    assert [event.kind for event in (*first.events, *last.events)] == ["started", "probed", "finished"]
    (again,) = client.follow(job.id, position=2)
    assert [event.kind for event in again.events] == ["finished"]
    with pytest.raises(NotFoundError):
        list(client.follow("gone"))


def test_following_shows_what_the_driver_does(client: Client, store: Store) -> None:
    job = running_job(client, store)
    updates = client.follow(job.id)
    stage = JobStage(name="Searching", done=3, total=9, detail="latency 4/10", remaining_s=12.5)
    assert next(updates).stage is None
    store.record_stage(job.id, stage, epoch=job.epoch)
    update = next(updates)
    assert (update.stage, update.events) == (stage, ())
    assert update.progress.remaining_s == 12.5
    assert client.records.job(job.id).stage == stage
    store.change_job(job.id, lifecycle.settled(job.epoch, JobState.FINISHED, "Search finished"))
    *_, last = updates
    assert last.stage is None


def test_tasks_are_listed(client: Client) -> None:
    assert {"digits-cnn", "minilm-lee"} <= {task.name for task in client.tasks()}


def test_tokens_are_administered(client: Client, store: Store) -> None:
    made = client.add_token("ann", scope=Scope.VIEWER, days=1)
    assert made.text.startswith(f"autotune_{made.token.id}_")
    assert made.token in client.tokens()
    revoked = client.revoke_token(made.token.id)
    assert revoked.revoked_at is not None
    assert client.revoke_token(made.token.id) == revoked
    assert dataclasses.replace(revoked, revoked_at=None) == made.token
    with pytest.raises(JobSpecError, match="name"):
        client.add_token("")
    with pytest.raises(NotFoundError):
        client.revoke_token("gone")
