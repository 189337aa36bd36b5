"""Databases as earlier releases left them: opened by today's code they hold the same, and their jobs go on."""

import base64
import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command

from autotune.client.actions import change_plan
from autotune.jobs.budget import searched
from autotune.jobs.records import FrontRecord, JobState, TrialKind, TrialRecord, TrialState
from autotune.search.run import run_job
from autotune.store.base import Store
from autotune.store.engine import make_engine, parse_url
from autotune.store.open import alembic_config, migrating, open_store
from workers.timing.estimates import Figure

DATA = Path(__file__).parents[1] / "data"
TASK_FILE = str(DATA / "fragile_task.py")
STATES = {"interrupted": JobState.PAUSED, "finished": JobState.FINISHED}

Tables = dict[str, list[dict[str, Any]]]


@pytest.fixture
def frozen() -> Tables:
    """What ``autotune run`` of the release with revision 0003 recorded: a finished job and a stopped one."""
    tables = json.loads((DATA / "database_0003.json").read_text())["tables"]
    return {
        name: [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]] for name, table in tables.items()
    }


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def engine(request: pytest.FixtureRequest, frozen: Tables) -> Iterator[sa.Engine]:
    """A database at revision 0003 with the frozen rows."""
    made = make_engine(parse_url(request.getfixturevalue(request.param)), read_only=False)
    with made.begin() as connection:
        command.upgrade(alembic_config(connection), "0003")
        for name, rows in frozen.items():
            table = sa.Table(name, sa.MetaData(), autoload_with=connection)
            connection.execute(sa.insert(table), [thawed(table, row) for row in rows])
    yield made
    made.dispose()


@pytest.fixture
def store(engine: sa.Engine) -> Iterator[Store]:
    opened = open_store(engine.url.render_as_string(hide_password=False))
    yield opened
    opened.close()


def thawed(table: sa.Table, row: dict[str, Any]) -> dict[str, Any]:
    values = dict(row)
    for column in table.columns:
        value = values[column.name]
        if isinstance(column.type, sa.DateTime):
            values[column.name] = datetime.fromisoformat(value).replace(tzinfo=UTC)
        elif isinstance(value, dict) and set(value) == {"base64"}:
            values[column.name] = base64.b64decode(value["base64"])
    return values


def trials_in(frozen: Tables, job_id: str) -> list[TrialRecord]:
    """The trials that the frozen rows speak of."""
    choices: dict[int, dict[str, str]] = defaultdict(dict)
    for row in sorted(of_job(frozen, "layer_choices", job_id), key=lambda row: row["position"]):
        choices[row["number"]][row["layer"]] = row["choice"]
    figures: dict[int, dict[str, Figure]] = defaultdict(dict)
    for row in of_job(frozen, "measurements", job_id):
        figures[row["number"]][row["metric"]] = Figure(value=row["value"], low=row["low"], high=row["high"])
    return [
        TrialRecord(
            job_id=job_id, number=row["number"], kind=TrialKind(row["kind"]), label=row["label"],
            state=TrialState(row["state"]), choices=choices[row["number"]], key=row["map_key"],
            figures=figures[row["number"]], violations=row["violations"], attempts=row["attempts"], failure=None,
            message=row["message"], sampler_state=row["sampler_state"], environment=row["environment"],
            worker=row["worker"], seconds=row["seconds"], forward_seconds=row["forward_seconds"],
            finished_at=datetime.fromisoformat(row["finished_at"]).replace(tzinfo=UTC),
        )
        for row in of_job(frozen, "trials", job_id)
    ]  # fmt: skip


def of_job(frozen: Tables, table: str, job_id: str) -> list[dict[str, Any]]:
    return [row for row in frozen[table] if row["job_id"] == job_id]


def test_a_frozen_database_holds_the_same(store: Store, frozen: Tables) -> None:
    assert {job.id for job in store.jobs()} == {row["id"] for row in frozen["jobs"]}
    for row in frozen["jobs"]:
        job, job_id = store.job(row["id"]), row["id"]
        assert (job.name, job.document, job.state) == (row["name"], row["spec"], STATES[row["state"]])
        assert (job.owner, job.priority, job.served, job.order, job.epoch) == ("local", 0, False, None, 0)
        assert job.description is not None
        assert job.description.fingerprint == row["description"]["fingerprint"]
        assert store.trials(job_id) == trials_in(frozen, job_id)
        members: dict[int, list[int]] = defaultdict(list)
        for member in of_job(frozen, "front_members", job_id):
            members[member["revision"]].append(member["number"])
        assert store.fronts(job_id) == [
            FrontRecord(trials=f["trials"], members=tuple(members[f["revision"]]), hypervolume=f["hypervolume"])
            for f in of_job(frozen, "fronts", job_id)
        ]
        assert [(e.kind, e.message) for e in store.events(job_id)] == [
            (e["kind"], e["message"]) for e in of_job(frozen, "events", job_id)
        ]
    for row in frozen["latency_samples"]:
        latency = store.latency(row["job_id"], row["number"])[row["position"]]
        raw = np.frombuffer(base64.b64decode(row["candidate_ms"]["base64"]), dtype="<f8")
        np.testing.assert_array_equal(latency.candidate_ms, raw)
    probes = store.probes(frozen["probes"][0]["key"])
    assert probes is not None
    assert len(probes.layers) == len(frozen["layer_probes"])


def test_going_back_a_revision_keeps_every_row(engine: sa.Engine, store: Store, frozen: Tables) -> None:
    store.close()
    with migrating(engine) as connection:
        command.downgrade(alembic_config(connection), "0003")
    with engine.begin() as connection:
        for name, rows in frozen.items():
            table = sa.Table(name, sa.MetaData(), autoload_with=connection)
            found = [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for row in found:
                row |= {name: value.replace(tzinfo=UTC) for name, value in row.items() if isinstance(value, datetime)}
            assert sorted(found, key=str) == sorted((thawed(table, row) for row in rows), key=str), name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trials"), [("frozen", 11), ("stopped", 9)])
def test_a_frozen_job_goes_on(store: Store, name: str, trials: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.jobs.budget.MOST_FINAL", 1)
    (job_id,) = (job.id for job in store.jobs() if job.name == name)
    before = store.trials(job_id)
    change_plan(store, job_id, trials=trials)
    finished = run_job(store, job_id, task_file=TASK_FILE)
    assert finished.state is JobState.FINISHED
    after = store.trials(job_id)
    assert after[: len(before)] == before
    assert [trial.number for trial in after] == list(range(len(after)))
    assert searched(after) == trials
    kinds = [told.kind for told in store.events(job_id)]
    assert kinds[-4:] == ["replanned", "resumed", "time_spent", "finished"]
