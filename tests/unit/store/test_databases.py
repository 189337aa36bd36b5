"""What databases promise beyond the store's contract: migrations, durability settings, readers, errors."""

import dataclasses
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from autotune.errors import ConflictError, StoreError
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
from autotune.store.engine import make_engine, parse_url
from autotune.store.open import VERSION_TABLE, alembic_config, default_url, migrate, migrating, open_store
from autotune.store.rows import figure_rows, job_row, trial_row
from autotune.store.tables import metadata
from workers.recovered import RecoveryReport, RecoverySettings, digest
from workers.setup import Estimator, LayerProbe, Probes
from workers.timing.estimates import Figure

AT = datetime(2026, 1, 2, tzinfo=UTC)
JOB = JobRecord(id="a1", name="x", task="t", document={"s": 1}, state=JobState.FINISHED, created_at=AT, updated_at=AT)
TRIAL = TrialRecord(
    job_id="a1", number=0, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices={}, key="k",
    figures={"accuracy": Figure(value=0.5)}, finished_at=AT,
)  # fmt: skip
PROBES = Probes(
    layers=(LayerProbe(layer="fc", choice="fp32", divergence=0.0, latency_ms=0.5),),
    pass_ms=1.5,
    estimator=Estimator.GRADIENT,
    samples=12,
    seconds=2.5,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    found = request.getfixturevalue(name)
    assert isinstance(found, str)
    return found


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    made = make_engine(parse_url(url), read_only=False)
    yield made
    made.dispose()


def insert(connection: sa.Connection, name: str, rows: list[dict[str, Any]]) -> None:
    """Insert what a table of an earlier revision has columns for."""
    known = {column["name"] for column in sa.inspect(connection).get_columns(name)}
    declared = metadata.tables[name]
    values = [{key: value for key, value in row.items() if key in known} for row in rows]
    connection.execute(sa.insert(declared).values({key: sa.bindparam(key) for key in values[0]}), values)


def test_migrated_tables_are_the_declared_ones(url: str, engine: sa.Engine) -> None:
    migrate(url)
    with engine.begin() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_migrations_go_down_and_up_again(url: str, engine: sa.Engine) -> None:
    migrate(url)
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    with engine.begin() as connection:
        assert set(sa.inspect(connection).get_table_names()) == {VERSION_TABLE}
    migrate(url)
    open_store(url).close()


def test_probes_are_added_to_a_database_in_use_and_taken_away(url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
        insert(connection, "jobs", [job_row(JOB)])
    store = open_store(url)
    assert store.jobs() == [JOB]
    assert store.probes("k") is None
    store.record_probes("k", PROBES)
    assert store.probes("k") == PROBES
    store.close()
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "0001")
        assert not {"probes", "layer_probes"} & set(sa.inspect(connection).get_table_names())
    store = open_store(url)
    assert store.jobs() == [JOB]
    assert store.probes("k") is None
    store.close()


def test_database_without_probes_is_told_to_upgrade(url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
    with pytest.raises(StoreError, match=r"at revision 0001, but this program needs \d+; run: autotune db upgrade"):
        open_store(url, read_only=True)


def test_layer_probes_go_with_their_probes(url: str, engine: sa.Engine) -> None:
    store = open_store(url)
    store.record_probes("k", PROBES)
    store.close()
    with engine.begin() as connection:
        connection.execute(sa.delete(metadata.tables["probes"]))
        assert connection.execute(sa.select(metadata.tables["layer_probes"])).all() == []


def test_processes_that_start_together_migrate_once(url: str) -> None:
    code = f"from autotune.store.open import open_store; open_store({url!r}).close()"
    command = [sys.executable, "-c", code]
    with ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE)) for _ in range(4)]
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()


def test_newer_tables_are_refused(url: str, engine: sa.Engine) -> None:
    migrate(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    for read_only in (False, True):
        with pytest.raises(StoreError, match="revision 9999, which is newer than this program") as caught:
            open_store(url, read_only=read_only)
        shown = make_engine(parse_url(url), read_only=False).url.render_as_string()
        assert f"the tables of {shown} are" in str(caught.value)
        assert "run: pip install --upgrade" in str(caught.value)


def test_reader_of_an_empty_database_is_told_to_upgrade(url: str, engine: sa.Engine) -> None:
    with engine.begin():
        pass
    with pytest.raises(StoreError, match="run: autotune db upgrade"):
        open_store(url, read_only=True)


def test_reader_cannot_write(url: str) -> None:
    migrate(url)
    reader = make_engine(parse_url(url), read_only=True)
    with pytest.raises(sa.exc.DBAPIError, match=r"(?i)read-?\s?only"), reader.begin() as connection:
        connection.execute(sa.delete(metadata.tables["jobs"]))
    reader.dispose()


def test_sqlite_waits_for_others_and_survives_a_power_cut(sqlite_url: str) -> None:
    migrate(sqlite_url)
    with make_engine(parse_url(sqlite_url), read_only=False).begin() as connection:
        settings = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in (
            "journal_mode", "synchronous", "busy_timeout", "foreign_keys")}  # fmt: skip
    assert settings == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30000, "foreign_keys": 1}


def test_reader_in_the_middle_of_reading_does_not_stop_a_writer(sqlite_url: str) -> None:
    migrate(sqlite_url)
    reader = make_engine(parse_url(sqlite_url), read_only=True)
    with reader.begin() as reading:
        reading.execute(sa.select(metadata.tables["jobs"])).all()
        with sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), timeout=0.5) as writing:
            writing.execute("DELETE FROM jobs")
    reader.dispose()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nonsense secret", "but the given text is not a URL"),
        ("mysql://user:secret@host/db", r"but got 'mysql://user:\*\*\*@host/db'"),
        ("sqlite://", "but got 'sqlite://'"),
        ("postgresql://user:secret@127.0.0.1:1/db", r"cannot open the database postgresql\+psycopg://user:\*\*\*@"),
        ("sqlite:////proc/nowhere/x.db", "cannot create the database folder"),
    ],
)
def test_wrong_urls_are_explained_without_their_password(wrong: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        open_store(wrong)
    assert "secret" not in str(caught.value)


def test_reading_where_there_is_nothing_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="create it with 'autotune run'"):
        open_store(f"sqlite:///{tmp_path}/none.db", read_only=True)


def test_default_database_can_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOTUNE_DATABASE", raising=False)
    assert default_url() == "sqlite:///autotune.db"
    monkeypatch.setenv("AUTOTUNE_DATABASE", "postgresql://db/x")
    assert default_url() == "postgresql://db/x"


def test_final_measurements_are_added_to_a_database_in_use_and_taken_away(url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0002")
        insert(connection, "jobs", [job_row(JOB)])
        insert(connection, "trials", [trial_row(TRIAL)])
        insert(connection, "measurements", figure_rows(TRIAL))
    final = dataclasses.replace(TRIAL, number=1, kind=TrialKind.FINAL)
    store = open_store(url)
    store.record([TrialResult(trial=final)], epoch=0)
    assert store.trials("a1") == [TRIAL, final]
    with pytest.raises(ConflictError, match="same map"):
        store.record([TrialResult(trial=dataclasses.replace(final, number=2))], epoch=0)
    store.close()
    with migrating(engine) as connection:
        command.downgrade(alembic_config(connection), "0002")
    store = open_store(url)
    assert store.trials("a1") == [TRIAL]
    store.close()


def test_recovered_maps_are_added_to_a_database_in_use_and_taken_away(url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0007")
        insert(connection, "jobs", [job_row(JOB)])
        insert(connection, "layer_lists", [{"key": trial_row(TRIAL)["layers_key"], "layers": []}])
        insert(connection, "trials", [trial_row(TRIAL)])
        insert(connection, "measurements", figure_rows(TRIAL))
    learned = Artifact(sha256=digest(b"learned"), kind=ArtifactKind.LEARNED_WEIGHTS, data=b"learned")
    report = RecoveryReport(
        method="blocks", settings=RecoverySettings(), seconds=1.0, samples=48, validation_samples=16, before=0.2,
        after=0.1, layers=(), kept={}, sha256=learned.sha256, nbytes=7,
    )  # fmt: skip
    recovered = dataclasses.replace(TRIAL, number=1, kind=TrialKind.RECOVERED, key="r", parent=0, recovery=report)
    front = FrontRecord(trials=2, members=(0, 1), hypervolume=1.0)
    store = open_store(url)
    store.record([TrialResult(trial=recovered, artifacts=(learned,), front=front)], epoch=0)
    assert store.trials("a1") == [TRIAL, recovered]
    store.close()
    with migrating(engine) as connection:
        command.downgrade(alembic_config(connection), "0007")
    store = open_store(url)
    assert store.trials("a1") == [TRIAL]
    assert store.fronts("a1") == [dataclasses.replace(front, members=(0,))]
    store.close()
