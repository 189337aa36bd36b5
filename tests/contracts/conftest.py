"""What the contracts of several seams are run over."""

from collections.abc import Iterator

import pytest

from autotune.store.base import Store
from autotune.store.memory import MemoryStore
from autotune.store.open import open_store


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    opened = open_store(url)
    yield opened
    opened.close()
