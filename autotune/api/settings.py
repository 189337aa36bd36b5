"""How the API works; plain data."""

from dataclasses import dataclass

from autotune.client.local import Limits
from autotune.errors import JobSpecError

#: Names and addresses that only this machine can mean.
LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: What each user may ask for.
LIMITS = Limits(live_jobs=100, trials=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """What ``autotune api`` or ``autotune serve --listen`` was told.

    Raises:
        JobSpecError: if others could reach an API that asks for no token.
    """

    address: str = "127.0.0.1"
    port: int = 8123
    #: Names the service may be called by, besides ``address`` and those of loopback.
    host_names: tuple[str, ...] = ()
    #: Whether callers need a token.
    authentication: bool = True
    #: What each user may ask for.
    limits: Limits = LIMITS

    def __post_init__(self) -> None:
        if not self.authentication and self.address not in LOOPBACK:
            raise JobSpecError(
                f"without authentication the API listens on loopback only, but got address {self.address!r}; "
                "leave --no-authentication out and make tokens by: autotune token add NAME"
            )

    @property
    def hosts(self) -> frozenset[str]:
        """Return the hosts that requests may be for; any other one is an attacker's name for this address."""
        return frozenset(name.lower() for name in (*LOOPBACK, self.address, *self.host_names))


def parse_listen(text: str) -> tuple[str, int]:
    """Return address and port of ``ADDRESS:PORT``.

    Raises:
        JobSpecError: if it is not that.
    """
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal() or not 0 < int(port) < 65536:
        raise JobSpecError(f"an address to listen on must be ADDRESS:PORT, such as 127.0.0.1:8123, but got {text!r}")
    return address.strip("[]"), int(port)
