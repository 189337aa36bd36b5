"""Final measurements: a map may be recorded twice, once by the search and once at full fidelity.

Revision: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_SEARCHED_ONLY = "uq_trials_job_id_map_key"
_ONCE = {
    "uq_trials_searched_map": sa.text("kind <> 'final'"),
    "uq_trials_final_map": sa.text("kind = 'final'"),
}


def upgrade() -> None:
    """Upgrade the tables to this revision."""
    with op.batch_alter_table("trials") as batch:
        batch.drop_constraint(_SEARCHED_ONLY, type_="unique")
    for name, where in _ONCE.items():
        op.create_index(name, "trials", ["job_id", "map_key"], unique=True, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """Downgrade the tables to the previous revision, dropping final measurements."""
    for name in _ONCE:
        op.drop_index(name, "trials")
    final = "SELECT 1 FROM trials t WHERE t.job_id = c.job_id AND t.number = c.number AND t.kind = 'final'"
    # SQLite does not enforce references while tables are rebuilt.
    for child in ("measurements", "latency_samples", "layer_choices", "front_members"):
        op.execute(sa.text(f"DELETE FROM {child} AS c WHERE EXISTS ({final})"))
    op.execute(sa.text("DELETE FROM trials WHERE kind = 'final'"))
    with op.batch_alter_table("trials") as batch:
        batch.create_unique_constraint(_SEARCHED_ONLY, ["job_id", "map_key"])
