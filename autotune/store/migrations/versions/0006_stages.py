"""Stages: jobs record what their driver is doing.

Revision: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Upgrade the tables to this revision; of earlier jobs nothing is known."""
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("stage", sa.JSON()))


def downgrade() -> None:
    """Downgrade the tables to the previous revision, dropping the stages."""
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("stage")
