"""Decides which requests vote about drift, so that bursts and repeated requests of one client count once."""

import hashlib
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Thinning:
    """Gives at most one vote to a client per minute, and that only with probability ``rate``."""

    #: Probability that a client votes in a minute.
    rate: float
    #: Changes which clients vote in which minutes.
    seed: int = 0
    _minute: int = field(default=-1, init=False)
    _seen: set[str] = field(default_factory=set, init=False)

    def votes(self, client: str, at_s: float) -> bool:
        """Return whether a request votes.

        Args:
            client: who sent it.
            at_s: when, in seconds; a request of an earlier minute than another's does not vote.
        """
        minute = int(at_s // 60)
        if minute > self._minute:
            self._minute, self._seen = minute, set()
        if minute < self._minute or client in self._seen:
            return False
        self._seen.add(client)
        # A client that was thinned out must not try again within the minute.
        digest = hashlib.sha256(f"{self.seed}\0{minute}\0{client}".encode()).digest()
        return int.from_bytes(digest[:8]) < self.rate * 2.0**64
