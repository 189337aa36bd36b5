"""What the contracts of several seams are run over."""

from collections.abc import Iterator

import pytest

from autotune.store.base import Store
from autotune.store.in_memory import MemoryStore
from autotune.store.open import open_store


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    url = request.getfixturevalue(f"migrated_{request.param}_url")
    opened = open_store(url)
    yield opened
    opened.close()
