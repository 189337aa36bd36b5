"""How to recover a map, and what came of it; plain data."""

import hashlib
from dataclasses import dataclass

from workers.measurement import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySettings:
    """How weights and biases of a map are learned."""

    #: Passes over the training batches of a block, each in a step per batch.
    epochs: int = 4
    #: Share of the calibration batches that only decide whether what was learned is used.
    validation: float = 0.25
    #: Seconds after which no further block is begun; None for no limit.
    time_limit_s: float | None = None
    #: Seed of the order of batches.
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """What recovery did to a map."""

    method: str
    settings: RecoverySettings
    seconds: float
    #: Calibration samples that weights were learned from, at most per block, and that decided whether they are used.
    samples: int
    validation_samples: int
    #: Mean divergence of the map from full precision on the validation samples, before and after.
    before: float
    after: float
    #: Names of the layers with learned weights, in execution order; empty if the map was kept as it was.
    layers: tuple[str, ...]
    #: Layer or block -> why it was kept as it was.
    kept: dict[str, str]
    #: sha256 of the learned weights in hexadecimal, and their bytes; "" and 0 if there are none.
    sha256: str = ""
    nbytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """A recovered map: quality alone is measured again, because kernels and bytes stay the same."""

    report: RecoveryReport
    #: File of what was learned; see ``workers.recovery.learned``. Empty if the map was kept as it was.
    learned: bytes
    #: Quality of the map with the learned weights, without latencies; None if it was kept as it was.
    measurement: Measurement | None


def digest(learned: bytes) -> str:
    """Return the sha256 by which a file of learned weights is known, in hexadecimal."""
    return hashlib.sha256(learned).hexdigest()
