"""Workloads: latencies record what was timed.

Revision: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Upgrade the tables to this revision; earlier latencies are all of forward passes."""
    with op.batch_alter_table("latency_samples") as batch:
        batch.add_column(sa.Column("workload", sa.String(length=32), nullable=False, server_default="forward"))
    with op.batch_alter_table("latency_samples") as batch:
        batch.alter_column("workload", server_default=None)


def downgrade() -> None:
    """Downgrade the tables to the previous revision, dropping latencies of other workloads."""
    op.execute(sa.text("DELETE FROM latency_samples WHERE workload <> 'forward'"))
    with op.batch_alter_table("latency_samples") as batch:
        batch.drop_column("workload")
