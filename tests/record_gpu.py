"""Run the tests that need a GPU, and record where they ran and how they ended.

python tests/record_gpu.py docs/gpu-tests.json
"""

import json
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from workers.device import environment, gpu


class Counts:
    """A pytest plugin that counts how tests end."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1


def record(outcomes: Counter[str]) -> dict[str, object]:
    """Return what is written down of a run."""
    here = environment.capture(hardware=gpu.hardware(), backend="torchao", device="cuda", libraries=("torchao",))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": here.hardware,
        "memory_mib": torch.cuda.get_device_properties().total_memory >> 20,
        "versions": dict(here.versions),
        "tests": {outcome: outcomes[outcome] for outcome in ("passed", "failed", "skipped")},
    }


def main(path: Path, *arguments: str) -> int:
    """Return pytest's exit code, after writing the record to ``path``."""
    if not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here, so nothing was run or recorded.", file=sys.stderr)
        return 1
    counts = Counts()
    code = pytest.main(["-m", "gpu", *arguments], plugins=[counts])
    path.write_text(json.dumps(record(counts.outcomes), indent=2) + "\n", encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
