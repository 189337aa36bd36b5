"""Steps of a rollout: a candidate shadows, answers ever more requests, and becomes active, or it is retired."""

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

from autotune.deployments.evidence import Verdict
from autotune.errors import JobSpecError


class Stage(StrEnum):
    """Where a revision stands."""

    CANDIDATE = "candidate"
    SHADOW = "shadow"
    CANARY = "canary"
    ACTIVE = "active"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The state of a revision's rollout; the revision that was active before stays the last good one until the end."""

    #: Percentages of requests that a canary answers, in order; 100 is appended, so that each rollout ends.
    shares: tuple[int, ...] = (5, 25, 50)
    #: Longest time in a step; without a verdict by then, the candidate fails.
    timeout_s: float = 3600.0
    stage: Stage = Stage.CANDIDATE
    #: Position in ``shares`` of a canary.
    position: int = 0
    #: When the step began, in seconds.
    since_s: float = 0.0
    #: Why the stage was entered.
    reason: str = ""

    def __post_init__(self) -> None:
        """Check and close the shares.

        Raises:
            JobSpecError: if the shares do not rise from 1 to 100.
        """
        closed = self.shares if self.shares[-1:] == (100,) else (*self.shares, 100)
        if list(closed) != sorted(set(closed)) or closed[0] < 1 or closed[-1] > 100:
            raise JobSpecError(
                f"shares must rise and be from 1 to 100, but got {self.shares}; list for example 5, 25, 50"
            )
        object.__setattr__(self, "shares", closed)

    @property
    def share(self) -> int:
        """Percentage of requests that the revision answers."""
        match self.stage:
            case Stage.CANARY:
                return self.shares[self.position]
            case Stage.ACTIVE:
                return 100
        return 0


def step(state: Rollout, verdict: Verdict, now_s: float, *, breached: str = "") -> Rollout:
    """Return the state after a look at the evidence of the present step.

    Each step needs fresh evidence, which starts when the step is entered. A breach also retires an active revision.

    Args:
        state: where the rollout stands.
        verdict: what the evidence of this step says.
        now_s: the time in seconds.
        breached: the limit that the revision broke, such as the accuracy floor; empty if it keeps all.
    """

    def enter(stage: Stage, reason: str, position: int = 0) -> Rollout:
        return replace(state, stage=stage, reason=reason, position=position, since_s=now_s)

    match state.stage:
        case Stage.RETIRED:
            return state
        case _ if breached:
            return enter(Stage.RETIRED, f"it broke {breached}")
        case Stage.ACTIVE:
            return state
        case Stage.CANDIDATE:
            return enter(Stage.SHADOW, "it was submitted")
    if verdict is Verdict.FAIL:
        return enter(Stage.RETIRED, "its evidence failed")
    if verdict is Verdict.INCONCLUSIVE:
        is_late = now_s - state.since_s >= state.timeout_s
        return enter(Stage.RETIRED, f"its evidence was inconclusive after {state.timeout_s:g} s") if is_late else state
    if state.stage is Stage.SHADOW:
        return enter(Stage.CANARY, "it passed in shadow")
    if state.share < 100:
        return enter(Stage.CANARY, f"it passed at {state.share} %", state.position + 1)
    return enter(Stage.ACTIVE, "it passed at 100 %")


def answers(share: int, key: str, salt: str) -> bool:
    """Return whether the canary answers a caller; once it does, it does at every larger share.

    Args:
        share: percentage of callers, from 0 to 100.
        key: names the caller, user or conversation.
        salt: names the rollout, so that not the same callers are first in each.
    """
    digest = hashlib.sha256(f"{salt}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8]) * 100 < share << 64
