"""The tables, one per kind of record; ``docs/database.md`` describes them for readers."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A time with a time zone, even on databases that store none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Return the time in UTC, as stored."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Return the stored time with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _trial_key() -> list[Any]:
    """Return the columns that identify a trial, for the tables of its parts."""
    return [
        Column("job_id", String(32), primary_key=True),
        Column("number", Integer, primary_key=True),
        ForeignKeyConstraint(["job_id", "number"], ["trials.job_id", "trials.number"], ondelete="CASCADE"),
    ]


def _job_key() -> Column[str]:
    return Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("state", String(32), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("description", JSON(none_as_null=True)),
    Column("error", Text),
    Column("driver", Text),
    Column("elapsed_s", Float, nullable=False),
    Column("version", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("served", Boolean, nullable=False),
    # The order; "order" itself is an SQL keyword.
    Column("requested", String(32)),
    Column("epoch", Integer, nullable=False),
    Column("leased_until", UtcDateTime),
    Column("stage", JSON(none_as_null=True)),
    Column("crashes", Integer, nullable=False),
    Index("ix_jobs_queue", "served", "state", "priority", "created_at"),
)

# The keys under which jobs were submitted, so that a retry with the same key returns the same job.
submissions = Table(
    "submissions",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request_hash", String(64), nullable=False),
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
)

# Access tokens; only the hash of the text that the holder sends is stored.
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Text, nullable=False),
    Column("scope", String(32), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)

# Layers of maps in execution order, as a JSON list; the trials of a job share one list.
layer_lists = Table(
    "layer_lists",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("layers", JSON, nullable=False),
)

trials = Table(
    "trials",
    metadata,
    _job_key(),
    Column("number", Integer, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("label", Text),
    Column("state", String(32), nullable=False),
    Column("map_key", String(64), nullable=False),
    Column("layers_key", String(64), ForeignKey("layer_lists.key"), nullable=False),
    # One choice per layer of the list, separated by commas.
    Column("choices", Text, nullable=False),
    Column("backend", String(64), nullable=False),
    # Of recovered maps only: number of the trial whose map was recovered, and what recovery did.
    Column("parent", Integer),
    Column("recovery", JSON(none_as_null=True)),
    Column("attempts", Integer, nullable=False),
    Column("failure", String(32)),
    Column("message", Text),
    Column("violations", JSON, nullable=False),
    Column("sampler_state", JSON, nullable=False),
    Column("environment", JSON, nullable=False),
    Column("worker", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("forward_seconds", Float, nullable=False),
    Column("finished_at", UtcDateTime, nullable=False),
)

# A job records a map at most once from the search and once at full fidelity.
for _name, _where in (("uq_trials_searched_map", "kind <> 'final'"), ("uq_trials_final_map", "kind = 'final'")):
    Index(
        _name, trials.c.job_id, trials.c.map_key, unique=True,
        sqlite_where=text(_where), postgresql_where=text(_where),
    )  # fmt: skip

measurements = Table(
    "measurements",
    metadata,
    *_trial_key(),
    Column("metric", String(64), primary_key=True),
    Column("value", Float, nullable=False),
    Column("low", Float),
    Column("high", Float),
)

latency_samples = Table(
    "latency_samples",
    metadata,
    *_trial_key(),
    Column("position", Integer, primary_key=True),
    Column("batch_size", Integer, nullable=False),
    Column("workload", String(32), nullable=False),
    # Milliseconds as little-endian 64-bit floats, in measurement order.
    Column("candidate_ms", LargeBinary, nullable=False),
    Column("reference_ms", LargeBinary, nullable=False),
)

# Files that trials need; their key is the sha256 of their bytes.
artifacts = Table(
    "artifacts",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

fronts = Table(
    "fronts",
    metadata,
    _job_key(),
    Column("revision", Integer, primary_key=True),
    Column("trials", Integer, nullable=False),
    Column("hypervolume", Float, nullable=False),
)

front_members = Table(
    "front_members",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    ForeignKeyConstraint(["job_id", "revision"], ["fronts.job_id", "fronts.revision"], ondelete="CASCADE"),
)

probes = Table(
    "probes",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("pass_ms", Float, nullable=False),
    Column("estimator", String(32), nullable=False),
    Column("samples", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

layer_probes = Table(
    "layer_probes",
    metadata,
    Column("key", String(64), ForeignKey("probes.key", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("layer", Text, nullable=False),
    Column("choice", String(64), nullable=False),
    Column("divergence", Float, nullable=False),
    Column("latency_ms", Float, nullable=False),
)

events = Table(
    "events",
    metadata,
    _job_key(),
    Column("position", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("message", Text, nullable=False),
)
