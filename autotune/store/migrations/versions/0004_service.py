"""The service: leases, priorities and orders of jobs, keys of submissions, tokens; a map in one row.

Revision: 0004
Revises: 0003
"""

import hashlib
import json
from itertools import groupby
from operator import itemgetter

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_STATES = {"created": "queued", "interrupted": "paused"}

_layer_choices = sa.table(
    "layer_choices", *(sa.column(name) for name in ("job_id", "number", "position", "layer", "choice"))
)
_layer_lists = sa.table("layer_lists", sa.column("key"), sa.column("layers", sa.JSON))
_trials = sa.table("trials", *(sa.column(name) for name in ("job_id", "number", "layers_key", "choices")))


def upgrade() -> None:
    """Upgrade the tables to this revision."""
    _extend_jobs()
    for old, new in _STATES.items():
        op.execute(sa.text(f"UPDATE jobs SET state = '{new}' WHERE state = '{old}'"))
    _create_submissions()
    _create_tokens()
    op.create_table(
        "layer_lists",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("layers", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_layer_lists")),
    )
    with op.batch_alter_table("trials") as batch:
        batch.add_column(sa.Column("layers_key", sa.String(length=64)))
        batch.add_column(sa.Column("choices", sa.Text()))
    _pack_maps()
    with op.batch_alter_table("trials") as batch:
        batch.alter_column("layers_key", existing_type=sa.String(length=64), nullable=False)
        batch.alter_column("choices", existing_type=sa.Text(), nullable=False)
        batch.create_foreign_key(op.f("fk_trials_layer_lists"), "layer_lists", ["layers_key"], ["key"])
    op.drop_table("layer_choices")


def downgrade() -> None:
    """Downgrade the tables to the previous revision, dropping keys and tokens."""
    _create_layer_choices()
    _unpack_maps()
    with op.batch_alter_table("trials") as batch:
        batch.drop_constraint(op.f("fk_trials_layer_lists"), type_="foreignkey")
        batch.drop_column("layers_key")
        batch.drop_column("choices")
    for table in ("layer_lists", "tokens", "submissions"):
        op.drop_table(table)
    op.drop_index("ix_jobs_queue", "jobs")
    with op.batch_alter_table("jobs") as batch:
        for column in ("owner", "priority", "served", "requested", "epoch", "leased_until", "crashes"):
            batch.drop_column(column)
    for old, new in {**_STATES, "interrupted": "cancelled"}.items():
        op.execute(sa.text(f"UPDATE jobs SET state = '{old}' WHERE state = '{new}'"))
    op.execute(sa.text("UPDATE jobs SET state = 'interrupted' WHERE state = 'paused'"))


def _extend_jobs() -> None:
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("owner", sa.Text(), nullable=False, server_default="local"))
        for name in ("priority", "epoch", "crashes"):
            batch.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("served", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("requested", sa.String(length=32)))
        batch.add_column(sa.Column("leased_until", sa.DateTime(timezone=True)))
    with op.batch_alter_table("jobs") as batch:
        for name, kind in (("owner", sa.Text()), ("served", sa.Boolean())):
            batch.alter_column(name, existing_type=kind, existing_nullable=False, server_default=None)
        for name in ("priority", "epoch", "crashes"):
            batch.alter_column(name, existing_type=sa.Integer(), existing_nullable=False, server_default=None)
    op.create_index("ix_jobs_queue", "jobs", ["served", "state", "priority", "created_at"])


def _create_submissions() -> None:
    op.create_table(
        "submissions",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_submissions_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("owner", "key", name=op.f("pk_submissions")),
    )


def _create_tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scope", sa.String(length=32), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_tokens_hash")),
    )


def _create_layer_choices() -> None:
    op.create_table(
        "layer_choices",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("layer", sa.Text(), nullable=False),
        sa.Column("choice", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "number"],
            ["trials.job_id", "trials.number"],
            name=op.f("fk_layer_choices_trials"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "number", "position", name=op.f("pk_layer_choices")),
    )


def _pack_maps() -> None:
    """Merge the rows of each map into its trial's row."""
    connection = op.get_bind()
    of_trial = itemgetter("job_id", "number")
    for job_id in connection.execute(sa.text("SELECT id FROM jobs")).scalars().all():
        wanted = sa.select(_layer_choices).where(_layer_choices.c.job_id == job_id)
        found = connection.execute(wanted.order_by(_layer_choices.c.number, _layer_choices.c.position)).mappings().all()
        maps = {key: list(rows) for key, rows in groupby(found, of_trial)}
        numbers = connection.execute(sa.select(_trials.c.number).where(_trials.c.job_id == job_id)).scalars().all()
        for number in numbers:
            rows = maps.get((job_id, number), [])
            _pack(connection, job_id, number, [row["layer"] for row in rows], [row["choice"] for row in rows])


def _pack(connection: sa.Connection, job_id: str, number: int, layers: list[str], choices: list[str]) -> None:
    key = hashlib.sha256(json.dumps(layers).encode()).hexdigest()
    if connection.execute(sa.select(_layer_lists.c.key).where(_layer_lists.c.key == key)).first() is None:
        connection.execute(sa.insert(_layer_lists).values(key=key, layers=layers))
    same = sa.update(_trials).where(_trials.c.job_id == job_id, _trials.c.number == number)
    connection.execute(same.values(layers_key=key, choices=",".join(choices)))


def _unpack_maps() -> None:
    """Restore one row per layer of every map."""
    connection = op.get_bind()
    lists = {row.key: row.layers for row in connection.execute(sa.select(_layer_lists))}
    for trial in connection.execute(sa.select(_trials)).mappings().all():
        choices = trial["choices"].split(",")
        rows = [
            {"job_id": trial["job_id"], "number": trial["number"], "position": i, "layer": layer, "choice": choice}
            for i, (layer, choice) in enumerate(zip(lists[trial["layers_key"]], choices, strict=False))
        ]
        if rows:
            connection.execute(sa.insert(_layer_choices), rows)
