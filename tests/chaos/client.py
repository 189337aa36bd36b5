"""Submits jobs under keys of its own, and one under a key that all clients share.

    python client.py URL NAME COUNT GO_FILE

Waits until GO_FILE exists; prints the id of the shared job, then id and milliseconds of each of its own.
"""

import sys
import time
from pathlib import Path

from autotune.client.actions import submit
from autotune.jobs.spec import JobSpec
from autotune.store.open import open_store


def main() -> None:
    url, name, count, go = sys.argv[1:]
    spec = JobSpec.parse({"name": "client", "task": {"name": "stub"}})
    store = open_store(url)
    print("ready", flush=True)
    while not Path(go).exists():
        time.sleep(0.01)
    print(submit(store, spec, key="shared").id)
    for number in range(int(count)):
        started = time.perf_counter()
        job = submit(store, spec, key=f"{name}-{number}")
        print(job.id, 1e3 * (time.perf_counter() - started))
    store.close()


if __name__ == "__main__":
    main()
