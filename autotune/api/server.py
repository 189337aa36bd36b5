"""A web server in its own thread, so that it can run in a controller's process and end with it."""

import logging
import socket
import threading

import uvicorn

from autotune.api.app import create_app
from autotune.api.settings import LOOPBACK, ApiSettings
from autotune.errors import JobSpecError
from autotune.store.base import Store
from autotune.store.open import check

_log = logging.getLogger(__name__)

#: Seconds that running requests have to finish when the server stops.
_GRACE_S = 5


class ApiServer:
    """Serves the API of a database."""

    def __init__(self, store: Store, database: str, settings: ApiSettings) -> None:
        """Bind the address; ``start`` begins to serve requests.

        Raises:
            JobSpecError: if the server cannot listen on the address.
        """
        self._settings = settings
        self._app = create_app(store, settings, lambda: check(database))
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
        self._server = uvicorn.Server(config)
        self._socket = _listen(settings)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="api", daemon=True)

    @property
    def url(self) -> str:
        """URL of the API."""
        address, port = self._socket.getsockname()[:2]
        return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"

    def start(self) -> None:
        """Start serving requests."""
        self._thread.start()
        needed = "tokens are required" if self._settings.authentication else "NO token is required"
        _log.info("the API listens at %s; %s", self.url, needed)
        if self._settings.address not in LOOPBACK:
            _log.info("tokens cross the network unencrypted; put a TLS proxy in front of the API")

    def stop(self) -> None:
        """Let running requests finish, then stop."""
        self._app.state.stopping.set()
        self._server.should_exit = True
        self._thread.join(2 * _GRACE_S)


def _listen(settings: ApiSettings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
        return socket.create_server((settings.address, settings.port), family=family, backlog=2048)
    except OSError as error:
        where = f"{settings.address}:{settings.port}"
        raise JobSpecError(f"cannot listen on {where}: {error.strerror or error}; name another address") from None
