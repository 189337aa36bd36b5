"""Alembic's scripts: how the tables came to be, one file a revision."""
