"""Backends: the trials of one job may run on several.

Revision: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Upgrade the tables to this revision; earlier jobs had one backend, which their description names."""
    with op.batch_alter_table("trials") as batch:
        batch.add_column(sa.Column("backend", sa.String(64), nullable=False, server_default=""))
    with op.batch_alter_table("trials") as batch:
        batch.alter_column("backend", server_default=None)


def downgrade() -> None:
    """Downgrade the tables to the previous revision, dropping the backends of trials."""
    with op.batch_alter_table("trials") as batch:
        batch.drop_column("backend")
