"""The contract of ``autotune.store.base.Store``, run over every implementation."""

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.errors import ConflictError, JobSpecError, NotFoundError, StoreError, TooLargeError
from autotune.jobs.lifecycle import with_fields
from autotune.jobs.records import (
    Artifact,
    ArtifactKind,
    FrontRecord,
    JobRecord,
    JobState,
    TrialKind,
    TrialRecord,
    TrialResult,
    TrialState,
)
from autotune.jobs.timestamps import event
from autotune.metrics.catalog import METRICS
from autotune.store import artifacts, tables
from autotune.store.base import Store
from autotune.store.in_memory import MemoryStore
from autotune.store.sql import SqlStore
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.measurement import Environment, FailureCause, LatencySamples, Workload
from workers.recovered import RecoveryReport, RecoverySettings, digest
from workers.setup import (
    ActivationHistogram,
    BackendDescription,
    Calibration,
    Estimator,
    LayerProbe,
    ModelDescription,
    Probes,
)
from workers.timing.estimates import Figure

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
NASTY = "<script>alert('é')</script>\n\"; DROP TABLE jobs; -- \U0001f600"


def job(job_id: str = "a1", **changes: Any) -> JobRecord:
    fields = {
        "id": job_id,
        "name": NASTY,
        "task": "digits-cnn",
        "document": {"search": {"trials": 9}, "name": NASTY},
        "state": JobState.QUEUED,
        "created_at": AT,
        "updated_at": AT,
    }
    return JobRecord(**fields | changes)


def trial(number: int = 0, job_id: str = "a1", **changes: Any) -> TrialRecord:
    fields: dict[str, Any] = {
        "job_id": job_id,
        "number": number,
        "kind": TrialKind.SEARCH,
        "label": None,
        "state": TrialState.COMPLETE,
        "choices": {f"layer.{i}": "int8_static" if i % 2 else "fp32" for i in range(300)},
        "key": f"{number:032x}",
        "figures": {"accuracy": Figure(value=0.1 + 0.2), "latency_p50_ms": Figure(value=1 / 3, low=0.3, high=None)},
        "violations": {"latency_p50_ms": -0.25},
        "backend": "openvino",
        "sampler_state": {"NSGAIISampler:generation": 3},
        "environment": {"hardware": "cpu", "versions": {"torch": "2"}},
        "worker": "inline:1",
        "seconds": 1.5,
        "forward_seconds": 1.25,
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


def artifact(data: bytes) -> Artifact:
    return Artifact(sha256=digest(data), kind=ArtifactKind.LEARNED_WEIGHTS, data=data)


def recovery(learned: Artifact) -> RecoveryReport:
    return RecoveryReport(
        method="blocks", settings=RecoverySettings(time_limit_s=9.5), seconds=1 / 3, samples=48, validation_samples=16,
        before=0.1 + 0.2, after=1e-9, layers=("layer.1", NASTY), kept={"layer.3": NASTY}, sha256=learned.sha256,
        nbytes=len(learned.data),
    )  # fmt: skip


def tamper(store: Store, sha256: str, data: bytes) -> None:
    """Change an artifact behind the back of its store."""
    if isinstance(store, MemoryStore):
        store._artifacts[sha256] = data
        return
    assert isinstance(store, SqlStore)
    with store._engine.begin() as connection:
        connection.execute(sa.update(tables.artifacts).where(tables.artifacts.c.sha256 == sha256).values(data=data))


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
            ranges={"fc": ActivationRange(low=-1.5, high=2.25)},
            histograms={"fc": ActivationHistogram(low=-2.0, high=2.5, counts=(1, 0, 8), clipped=0.125)},
            samples=64,
            seconds=0.5,
            clipped={"fc": 1 / 3},
        ),
        environment=Environment(hardware="cpu", backend="x86", threads=2, load=0.5, versions={"torch": "2"}),
        others={
            "onnxruntime": BackendDescription(
                refusals={"fc": {"bf16": "no such kernel"}},
                layer_bytes={"fc": {"fp32": 4}},
                other_bytes=7,
                environment=Environment(hardware="cpu", backend="onnxruntime", threads=2, load=0.1, versions={}),
                weight_bits={"fc": 7},
            )
        },
        left_out={"openvino": NASTY},
    )


def probes(**changes: Any) -> Probes:
    layers = tuple(
        LayerProbe(layer=f"layer.{i}.{NASTY}", choice=choice, divergence=i / 3, latency_ms=1 / (i + 1))
        for i in range(150)
        for choice in ("int8_static", "fp32")
    )
    fields = {"layers": layers, "pass_ms": 0.1 + 0.2, "estimator": Estimator.LOCAL, "samples": 12, "seconds": 1 / 3}
    return Probes(**fields | changes)


def test_job_comes_back_as_it_was(store: Store) -> None:
    recorded = job(description=description(), error="x", driver="h:1:2", elapsed_s=1.5)
    store.create_job(recorded)
    assert store.job("a1") == recorded


def test_jobs_are_listed_newest_first(store: Store) -> None:
    for index, job_id in enumerate(["old", "new", "mid"]):
        store.create_job(job(job_id, created_at=AT + timedelta(hours=[0, 2, 1][index])))
    assert [record.id for record in store.jobs()] == ["new", "mid", "old"]


def test_job_ids_are_unique(store: Store) -> None:
    store.create_job(job())
    with pytest.raises(ConflictError, match="'a1' already"):
        store.create_job(job(name="other"))
    assert store.job("a1").name == NASTY


def test_update_changes_counts_and_tells(store: Store) -> None:
    store.create_job(job())
    changed = store.change_job(
        "a1", with_fields(0, event("started", "Go"), state=JobState.RUNNING, description=description())
    )
    assert changed == store.job("a1")
    assert changed.state is JobState.RUNNING
    assert changed.description == description()
    assert changed.version == 1
    assert changed.updated_at > AT
    assert [(e.kind, e.message) for e in store.events("a1")] == [("started", "Go")]
    assert store.change_job("a1", with_fields(0, error="x")).version == 2


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.job("b2"),
        lambda store: store.trials("b2"),
        lambda store: store.latency("b2", 0),
        lambda store: store.fronts("b2"),
        lambda store: store.events("b2"),
        lambda store: store.change_job("b2", with_fields(0, error="x")),
        lambda store: store.record([TrialResult(trial=trial(job_id="b2"))], epoch=0),
    ],
)
def test_unknown_job_is_not_found(store: Store, ask: Callable[[Store], Any]) -> None:
    with pytest.raises(NotFoundError, match="no job 'b2'"):
        ask(store)


def test_trial_comes_back_as_it_was(store: Store) -> None:
    store.create_job(job())
    complete = trial(0, label=NASTY, kind=TrialKind.BASELINE)
    failed = trial(
        1, state=TrialState.FAILED, figures={}, violations={}, environment={}, failure=FailureCause.CRASH,
        message=NASTY, attempts=3,
    )  # fmt: skip
    for record in (failed, complete):
        store.record([TrialResult(trial=record)], epoch=0)
    found = store.trials("a1")
    assert found == [complete, failed]
    assert list(found[0].choices) == list(complete.choices)


def test_latency_samples_are_exact(store: Store) -> None:
    store.create_job(job())
    store.record([TrialResult(trial=trial(), latency=samples())], epoch=0)
    found = store.latency("a1", 0)
    assert [latency.batch_size for latency in found] == [8, 1]
    assert [latency.workload for latency in found] == [Workload.FORWARD, Workload.DECODE]
    for mine, theirs in zip(samples(), found, strict=True):
        np.testing.assert_array_equal(mine.candidate_ms, theirs.candidate_ms)
        np.testing.assert_array_equal(mine.reference_ms, theirs.reference_ms)
    assert store.latency("a1", 5) == ()


def test_one_commit_writes_everything(store: Store) -> None:
    store.create_job(job())
    front = FrontRecord(trials=1, members=(0,), hypervolume=0.5)
    happened = (event("one", "1"), event("two", "2"))
    store.record([TrialResult(trial=trial(), latency=samples(), front=front, events=happened, elapsed_s=2.5)], epoch=0)
    wider = FrontRecord(trials=2, members=(0, 1), hypervolume=0.75)
    store.record([TrialResult(trial=trial(1), front=wider, elapsed_s=0.5)], epoch=0)
    assert store.fronts("a1") == [front, wider]
    assert store.events("a1") == list(happened)
    assert store.job("a1").elapsed_s == 3.0
    assert store.job("a1").version == 2


def test_artifacts_are_recorded_with_their_trial(store: Store) -> None:
    store.create_job(job())
    one, other = (artifact(bytes(range(256)) * size) for size in (1, 4000))
    store.record([TrialResult(trial=trial(), artifacts=(one,))], epoch=0)
    # The same bytes again belong to both.
    store.record([TrialResult(trial=trial(1), artifacts=(one, other))], epoch=0)
    assert (store.artifact(one.sha256), store.artifact(other.sha256)) == (one.data, other.data)
    with pytest.raises(ConflictError, match="same map"):
        store.record([TrialResult(trial=trial(2, key=trial().key), artifacts=(artifact(b"lost"),))], epoch=0)
    with pytest.raises(NotFoundError, match=f"no artifact '{artifact(b'lost').sha256}' in this database"):
        store.artifact(artifact(b"lost").sha256)


def test_a_recovered_map_has_its_report_and_the_latencies_of_its_parent(store: Store) -> None:
    store.create_job(job())
    learned = artifact(b"learned")
    child = trial(4, kind=TrialKind.RECOVERED, parent=2, recovery=recovery(learned))
    store.record([TrialResult(trial=trial(2), latency=samples()), TrialResult(trial=trial(3))], epoch=0)
    with pytest.raises(StoreError, match=rf"those of trial 4, {learned.sha256}, are not among its artifacts; add them"):
        store.record([TrialResult(trial=child)], epoch=0)
    store.record([TrialResult(trial=child, artifacts=(learned,))], epoch=0)
    assert store.trials("a1") == [trial(2), trial(3), child]
    assert isinstance(store.trials("a1")[-1].recovery, RecoveryReport)
    found, parents = store.latency("a1", 4), store.latency("a1", 2)
    assert [one.candidate_ms.tolist() for one in found] == [one.candidate_ms.tolist() for one in parents]
    assert len(found) == 2
    assert store.latency("a1", 3) == ()
    assert store.tallies(["a1"])["a1"].searched == 2


def test_an_artifact_with_another_hash_or_too_many_bytes_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_job(job())
    wrong = dataclasses.replace(artifact(b"true"), data=b"false")
    with pytest.raises(StoreError, match=rf"(?s)learned weights {wrong.sha256}.*have the sha256 {digest(b'false')}"):
        store.record([TrialResult(trial=trial(), artifacts=(wrong,))], epoch=0)
    monkeypatch.setattr(artifacts, "MOST_BYTES", 4)
    with pytest.raises(TooLargeError, match=r"at most 4 bytes, but the learned weights .* have 5; recover fewer"):
        store.record([TrialResult(trial=trial(), artifacts=(artifact(b"five!"),))], epoch=0)
    assert store.trials("a1") == []
    store.record([TrialResult(trial=trial(), artifacts=(artifact(b"four"),))], epoch=0)
    assert store.artifact(artifact(b"four").sha256) == b"four"


def test_an_artifact_that_was_changed_is_told_apart(store: Store) -> None:
    store.create_job(job())
    whole = artifact(b"whole")
    store.record([TrialResult(trial=trial(), artifacts=(whole,))], epoch=0)
    tamper(store, whole.sha256, b"holed")
    with pytest.raises(StoreError, match=rf"{whole.sha256} was changed .* have the sha256 {digest(b'holed')}; restore"):
        store.artifact(whole.sha256)


def test_recording_again_changes_nothing(store: Store) -> None:
    store.create_job(job())
    result = TrialResult(trial=trial(), latency=samples(), events=(event("one", "1"),), elapsed_s=1.0)
    store.record([result], epoch=0)
    before = store.job("a1")
    store.record([dataclasses.replace(result, trial=trial(0, key="other"))], epoch=0)
    assert store.job("a1") == before
    assert store.trials("a1") == [trial()]
    assert len(store.events("a1")) == 1


def test_a_map_may_be_recorded_once_more_as_final(store: Store) -> None:
    store.create_job(job())
    store.record([TrialResult(trial=trial())], epoch=0)
    final = trial(1, key=trial().key, kind=TrialKind.FINAL)
    store.record([TrialResult(trial=final)], epoch=0)
    with pytest.raises(ConflictError, match="same map"):
        store.record([TrialResult(trial=dataclasses.replace(final, number=2))], epoch=0)
    assert store.trials("a1") == [trial(), final]


def test_same_map_under_another_number_conflicts_and_leaves_nothing(store: Store) -> None:
    store.create_job(job())
    store.record([TrialResult(trial=trial())], epoch=0)
    before = store.job("a1")
    again = TrialResult(trial=trial(1, key=trial().key), latency=samples(), events=(event("x", "y"),), elapsed_s=9.0)
    with pytest.raises(ConflictError, match="same map"):
        store.record([again], epoch=0)
    assert store.job("a1") == before
    assert store.trials("a1") == [trial()]
    assert store.events("a1") == []


def test_two_jobs_may_measure_the_same_map(store: Store) -> None:
    for job_id in ("a1", "b2"):
        store.create_job(job(job_id))
        store.record([TrialResult(trial=trial(job_id=job_id))], epoch=0)
    assert store.trials("b2") == [trial(job_id="b2")]


def test_records_are_passed_by_value(store: Store) -> None:
    choices = {"fc": "fp32"}
    spec = {"search": {"trials": 9}}
    store.create_job(job(document=spec))
    store.record([TrialResult(trial=trial(choices=choices))], epoch=0)
    choices["fc"] = "bf16"
    spec["search"]["trials"] = 1
    with suppress(TypeError):  # choices need not be a dict that can be changed
        store.trials("a1")[0].choices["fc"] = "bf16"  # type: ignore[index]
    assert store.trials("a1")[0].choices == {"fc": "fp32"}
    assert store.job("a1").document == {"search": {"trials": 9}}


def test_a_job_of_another_version_is_listed_and_unreadable_only_where_its_file_is_needed(store: Store) -> None:
    document = {"name": "x", "task": {"name": "t"}, "search": {"trials": 9, "later": 1}, "later": {}}
    store.create_job(job("a1", document=document))
    store.create_job(job("b2", document=document | {"objectives": ["joules", "accuracy"]}))
    by_id = {found.id: found for found in store.jobs()}
    assert by_id["a1"].spec.search.trials == 9
    assert by_id["a1"].document == document, "what a later version recorded is kept"
    with pytest.raises(JobSpecError, match=r"(?s)job b2 was recorded by another version of quant-autotune.*joules"):
        _ = by_id["b2"].spec


def test_writers_in_threads_lose_nothing(store: Store) -> None:
    store.create_job(job())

    def write(first: int) -> None:
        for number in range(first, first + 10):
            store.record([TrialResult(trial=trial(number), events=(event("n", str(number)),), elapsed_s=1.0)], epoch=0)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 40, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.number for record in store.trials("a1")] == list(range(40))
    assert len(store.events("a1")) == 40
    assert store.job("a1").elapsed_s == 40.0


def test_probes_come_back_as_they_were(store: Store) -> None:
    other = probes(layers=(), estimator=Estimator.GRADIENT)
    store.record_probes("a" * 64, probes())
    store.record_probes("b" * 64, other)
    assert store.probes("a" * 64) == probes()
    assert store.probes("b" * 64) == other
    assert isinstance(store.probes("a" * 64).estimator, Estimator)  # type: ignore[union-attr]


def test_unknown_probes_are_none(store: Store) -> None:
    assert store.probes("a" * 64) is None
    store.record_probes("b" * 64, probes())
    assert store.probes("a" * 64) is None


def test_first_probes_stay(store: Store) -> None:
    store.record_probes("a" * 64, probes())
    store.record_probes("a" * 64, probes(layers=probes().layers[:3], samples=99))
    store.record_probes("a" * 64, probes(layers=probes().layers * 2))
    assert store.probes("a" * 64) == probes()


def test_drivers_that_probe_at_once_keep_one_result(store: Store) -> None:
    several = [probes(samples=number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda found: store.record_probes("a" * 64, found), several))
    assert store.probes("a" * 64) in several


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
numbers = st.floats(allow_nan=False, allow_infinity=False)
figures = st.builds(Figure, value=numbers, low=st.none() | numbers, high=st.none() | numbers)


@given(
    choices=st.dictionaries(names, st.sampled_from(["fp32", "int8_static"]), max_size=8),
    measured=st.dictionaries(st.sampled_from(sorted(METRICS)), figures),
    message=st.none() | names,
    violations=st.dictionaries(st.sampled_from(sorted(METRICS)), numbers),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_trial_survives_the_round_trip(
    store: Store,
    choices: dict[str, str],
    measured: dict[str, Figure],
    message: str | None,
    violations: dict[str, float],
) -> None:
    job_id = f"j{len(store.jobs())}"
    store.create_job(job(job_id))
    written = trial(
        job_id=job_id, choices=choices, figures=measured, message=message, violations=violations, key=job_id
    )
    store.record([TrialResult(trial=written)], epoch=0)
    assert store.trials(job_id) == [written]
