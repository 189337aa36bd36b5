"""Recovered maps: trials name their parents, and the files that they need are stored by the hash of their bytes.

Revision: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Upgrade the tables to this revision; no earlier trial is of a recovered map."""
    op.create_table(
        "artifacts",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_artifacts")),
    )
    with op.batch_alter_table("trials") as batch:
        batch.add_column(sa.Column("parent", sa.Integer()))
        batch.add_column(sa.Column("recovery", sa.JSON()))


def downgrade() -> None:
    """Downgrade the tables to the previous revision, dropping recovered maps and their files."""
    recovered = "SELECT 1 FROM trials t WHERE t.job_id = c.job_id AND t.number = c.number AND t.kind = 'recovered'"
    # SQLite does not enforce references while tables are rebuilt.
    for child in ("measurements", "front_members"):
        op.execute(sa.text(f"DELETE FROM {child} AS c WHERE EXISTS ({recovered})"))
    op.execute(sa.text("DELETE FROM trials WHERE kind = 'recovered'"))
    with op.batch_alter_table("trials") as batch:
        batch.drop_column("recovery")
        batch.drop_column("parent")
    op.drop_table("artifacts")
