"""Open a client for a service or a database."""

from autotune.client.base import Client
from autotune.client.local import LocalClient
from autotune.store.open import default_url, open_store


def connect(where: str | None = None, *, token: str | None = None, read_only: bool = False) -> Client:
    """Return a client of a service's HTTP API, or of a database.

    Args:
        where: ``http://...`` URL of a service, or a database URL; None is the default database.
        token: access token of the service; a database needs none.
        read_only: whether to open a database read-only.

    Raises:
        JobSpecError: if an HTTP URL is not that of a service.
        StoreError: if the database cannot be opened.
    """
    where = where or default_url()
    if where.startswith(("http:", "https:")):
        return connect_to_service(where, token)
    return LocalClient(open_store(where, read_only=read_only))


def connect_to_service(url: str, token: str | None) -> Client:
    """Return a client of the service at ``url``.

    Raises:
        JobSpecError: if ``url`` is not a URL of a service.
    """
    # Imported here because a database needs no HTTP.
    from autotune.client.remote import RemoteClient

    return RemoteClient(url, token)
