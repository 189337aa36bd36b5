"""Records trials until it is killed, and prints each one's number once it is durable: python writer.py URL JOB FIRST"""

import itertools
import sys

import numpy as np

from autotune.jobs.records import FrontRecord, TrialKind, TrialRecord, TrialResult, TrialState
from autotune.jobs.timestamps import event, now
from autotune.store.open import attach_store
from workers.measurement import LatencySamples


def result(job_id: str, number: int) -> TrialResult:
    trial = TrialRecord(
        job_id=job_id, number=number, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE,
        choices={"fc": "fp32"}, key=f"{number:032x}", finished_at=now(),
    )  # fmt: skip
    latency = LatencySamples(batch_size=1, candidate_ms=np.full(500, float(number)), reference_ms=np.ones(100))
    front = FrontRecord(trials=number + 1, members=(number,), hypervolume=float(number))
    return TrialResult(
        trial=trial, latency=(latency,), front=front, events=(event("recorded", str(number)),), elapsed_s=1.0
    )


def main() -> None:
    url, job_id, first = sys.argv[1:]
    store = attach_store(url, patience_s=60.0)
    for number in itertools.count(int(first)):
        store.record([result(job_id, number)], epoch=0)
        print(number, flush=True)


if __name__ == "__main__":
    main()
