"""Let one rival quantize the model of a job file: ``python -m benchmarks.rivals.peer NAME JOB_FILE FOLDER``."""

import argparse
from pathlib import Path

from benchmarks.rivals.peers import PEERS
from benchmarks.rivals.subject import load_subject


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[peer.name for peer in PEERS])
    parser.add_argument("job_file", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task-file")
    given = parser.parse_args()
    peer = next(peer for peer in PEERS if peer.name == given.name)
    peer.make(load_subject(given.job_file, given.task_file), given.folder).write(given.folder)


if __name__ == "__main__":
    main()
