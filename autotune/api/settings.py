"""Settings of the API, as plain data."""

from dataclasses import dataclass

from autotune.client.local import Limits
from autotune.errors import JobSpecError

#: Names and addresses that always mean this machine.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: Default limits per user.
LIMITS = Limits(live_jobs=100, trials=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Options of ``autotune api`` and ``autotune serve --listen``.

    Raises:
        JobSpecError: if other machines could reach an API that requires no token.
    """

    address: str = "127.0.0.1"
    port: int = 8123
    #: Host names that requests may use, in addition to ``address`` and the loopback names.
    host_names: tuple[str, ...] = ()
    #: Whether callers need a token.
    authentication: bool = True
    #: Limits per user.
    limits: Limits = LIMITS

    def __post_init__(self) -> None:
        if not self.authentication and self.address not in LOOPBACK:
            raise JobSpecError(
                f"without authentication the API listens on loopback only, but got address {self.address!r}; "
                "omit --no-authentication and create tokens with: autotune token add NAME"
            )

    @property
    def hosts(self) -> frozenset[str]:
        """Hosts that requests may name; any other host may be an attacker's name for this address."""
        return frozenset(name.lower() for name in (*LOOPBACK, self.address, *self.host_names))


def parse_listen(text: str) -> tuple[str, int]:
    """Return address and port of ``ADDRESS:PORT``.

    Raises:
        JobSpecError: if the text has another form.
    """
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal() or not 0 < int(port) < 65536:
        raise JobSpecError(f"an address to listen on must be ADDRESS:PORT, such as 127.0.0.1:8123, but got {text!r}")
    return address.strip("[]"), int(port)
