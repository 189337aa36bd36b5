"""Probes: predicted effects of every layer and choice.

Revision: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Upgrade the tables to this revision."""
    op.create_table(
        "probes",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("pass_ms", sa.Float(), nullable=False),
        sa.Column("estimator", sa.String(length=32), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_probes")),
    )
    op.create_table(
        "layer_probes",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("layer", sa.Text(), nullable=False),
        sa.Column("choice", sa.String(length=64), nullable=False),
        sa.Column("divergence", sa.Float(), nullable=False),
        sa.Column("latency_ms", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["probes.key"], name=op.f("fk_layer_probes_probes"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", "position", name=op.f("pk_layer_probes")),
    )


def downgrade() -> None:
    """Downgrade the tables to the previous revision."""
    op.drop_table("layer_probes")
    op.drop_table("probes")
