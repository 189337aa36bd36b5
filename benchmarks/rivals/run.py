"""Compare a job of ours with other tools on one model: the same data, metric and limit, measured in turns.

    python -m benchmarks.rivals.run minilm [--seconds 300] [--output FOLDER] [--cache FOLDER]
        [--only [NAME ...]]

Needs what `benchmarks.models.run` needs, a C++ compiler, and half a gigabyte for the other tools, which pip installs
into environments in the output folder. Our job searches every backend that is installed. Each rival quantizes in a
process of its own and may take as long as our job. At the end one process measures everything in turns, and
the table goes to standard output. A model takes half an hour. With `--only`, a finished run is repeated for the named
rivals alone, or for nobody, and then everything in its folder is measured again.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from autotune.jobs.spec import ALL_BACKENDS, JobSpec
from autotune.maps import map_file
from benchmarks.models.fetch import CACHE, MODELS, described
from benchmarks.models.run import HERE, TASK_FILES, Commands, error_of
from benchmarks.rivals import table
from benchmarks.rivals.artefacts import ARTEFACT, Artefact, Kind, bytes_of
from benchmarks.rivals.environments import python
from benchmarks.rivals.peers import OPENVINO, PEERS, Peer
from benchmarks.rivals.subject import most_drop
from workers.device.environment import cpu_hardware, usable_cores

OURS = "quant-autotune"
#: File in the folder of a model: name -> seconds that quantizing took, and why others failed.
RECORD = "made.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--seconds", type=float, default=300.0, help="time limit of our job")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of checkpoints and data")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/rivals"), help="folder of the results")
    parser.add_argument("--only", nargs="*", choices=[OURS, *(peer.name for peer in PEERS)], metavar="NAME")
    given = parser.parse_args()
    for path in MODELS[given.model](given.cache):
        print(f"    {described(path)}", flush=True)
    comparison = Comparison(given.model, given.cache.resolve(), given.output.resolve(), given.seconds)
    comparison.make(given.only)
    print(comparison.measured(), flush=True)


class Record:
    """Who made an artefact in which time, and who did not, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        #: Name -> seconds that the process took.
        self.seconds: dict[str, float] = found.get("seconds", {})
        #: Name -> why there is no artefact.
        self.refused: dict[str, str] = found.get("refused", {})

    def made(self, name: str, seconds: float) -> None:
        """Record that an artefact was made."""
        self.refused.pop(name, None)
        self.seconds[name] = seconds
        self._write()

    def failed(self, name: str, reason: str) -> None:
        """Record that none was made."""
        self.seconds.pop(name, None)
        self.refused[name] = reason
        self._write()

    def _write(self) -> None:
        document = {"seconds": self.seconds, "refused": self.refused}
        self._path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


class Comparison:
    """One model and the folder in which everybody's artefacts lie."""

    def __init__(self, model: str, cache: Path, output: Path, seconds: float) -> None:
        self._model, self._output, self._seconds = model, output, seconds
        self._folder = output / model
        self._job_file = self._folder / "job.yaml"
        file = TASK_FILES.get(model)
        self._task_file = ["--task-file", str(file)] if file else []
        self._environment = os.environ | {"AUTOTUNE_DATA": str(cache)}
        self._commands = Commands(model, cache, self._folder)

    def make(self, only: Sequence[str] | None) -> None:
        """Run our job and every rival, or only the named ones, and record how long each took."""
        if only is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            self._job_file.write_text(yaml.safe_dump(job(self._model, self._seconds)), encoding="utf-8")
        record = Record(self._folder / RECORD)
        if only is None or OURS in only:
            self._make_ours(record)
        for peer in PEERS:
            if only is None or peer.name in only:
                self._make(peer, record)

    def _make_ours(self, record: Record) -> None:
        folder = emptied(self._folder / OURS)
        start = time.monotonic()
        process = self._commands.start("autotune.cli.main", "run", str(self._job_file), stdout=subprocess.DEVNULL)
        if process.wait() != 0:
            raise SystemExit(f"our job ended with exit code {process.returncode}; the lines above say why")
        target = folder / "map"
        code, output, error = self._commands.output(
            "autotune.cli.main", "export", "last", "--output", str(target), "--json"
        )
        if code != 0:
            raise SystemExit(f"the recommended map was not exported: {error}")
        artefact = ours(target, json.loads(output))
        artefact.write(folder)
        record.made(artefact.name, time.monotonic() - start)

    def _make(self, peer: Peer, record: Record) -> None:
        print(f"{peer.name} ...", file=sys.stderr, flush=True)
        folder = emptied(self._folder / peer.folder)
        interpreter = python(peer.environment, peer.packages, self._output / "environments")
        command = [interpreter, "-m", "benchmarks.rivals.peer", peer.name, self._job_file, folder, *self._task_file]
        start = time.monotonic()
        with (folder / "log.txt").open("w+", encoding="utf-8") as log:
            try:
                code = subprocess.run(
                    command, env=self._environment, stdout=log, stderr=log, timeout=self._seconds, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                record.failed(peer.name, f"not ready after {self._seconds:.0f} s")
                return
            log.seek(0)
            if code == 0:
                record.made(peer.name, time.monotonic() - start)
            else:
                record.failed(peer.name, reason_of(log.read()) or f"exit code {code}")

    def measured(self) -> str:
        """Return the table of what is in the folder, measured in turns, with failures and versions below it."""
        interpreter = python("nncf", OPENVINO, self._output / "environments")
        command = [interpreter, "-m", "benchmarks.rivals.measure", self._job_file, self._folder, *self._task_file]
        load = os.getloadavg()[0]
        process = subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, text=True, check=True)
        lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
        (self._folder / "measured.json").write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
        record = Record(self._folder / RECORD)
        versions = [Artefact.read(path.parent).versions for path in self._folder.glob(f"*/{ARTEFACT}")]
        parts = (
            f"## {self._model}",
            table.table(lines, record.seconds, most_drop(JobSpec.load(self._job_file))),
            table.failures(lines, record.refused),
            table.environment(versions, cpu_hardware(), usable_cores(), load),
        )
        return "\n\n".join(part for part in parts if part)


def reason_of(log: str) -> str:
    """Return the first line of the last exception in a log, or else its last line."""
    raised = [line for line in log.splitlines() if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    return raised[-1] if raised else error_of(log)


def emptied(folder: Path) -> Path:
    """Return a folder that is now empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def job(model: str, seconds: float) -> dict[str, Any]:
    """Return the job of a model on every backend, with a time limit, about the forward pass.

    Other runtimes only run the forward pass, so another workload could not be compared.
    """
    spec: dict[str, Any] = yaml.safe_load((HERE / f"{model}.yaml").read_text(encoding="utf-8"))
    spec["backend"] = ALL_BACKENDS
    spec["objectives"] = ["latency_p50_ms", "divergence"]
    spec["search"]["time_limit_s"] = seconds
    return spec


def ours(target: Path, exported: Mapping[str, Any]) -> Artefact:
    """Return the description of our recommended map, which ``autotune export --json`` wrote to ``target``."""
    file = map_file.read(target if target.is_file() else target / "map.json")
    # A map file has no weights; they are what it installs.
    weights = round(file.promised["weight_memory_mib"].value * (1 << 20))
    return Artefact(
        name=f"{OURS} ({file.backend}, trial {exported['trial']})",
        kind=Kind.MAP,
        file=target.name,
        bytes=weights if target.is_file() else bytes_of(target),
        versions={OURS: metadata.version(OURS)},
    )


if __name__ == "__main__":
    main()
