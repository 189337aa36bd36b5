"""Alembic's migration scripts, one file per revision of the tables."""
