"""Runs migrations on the connection that ``autotune.store.open`` provides."""

from alembic import context

from autotune.store.open import VERSION_TABLE
from autotune.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite changes columns by copying the table
    transactional_ddl=False,  # the caller's transaction covers the whole upgrade
)
context.run_migrations()
