"""Recovered maps: files that trials need are stored by the hash of their bytes.

Revision: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Upgrade the tables to this revision; earlier trials need no files."""
    op.create_table(
        "artifacts",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_artifacts"),
    )


def downgrade() -> None:
    """Downgrade the tables to the previous revision, dropping the files."""
    op.drop_table("artifacts")
