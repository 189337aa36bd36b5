"""Measure all artefacts in a folder in one process, in turns: ``python -m benchmarks.rivals.measure JOB_FILE FOLDER``.

Prints one JSON object per artefact: its figures, or why it cannot be measured. Needs OpenVINO. A lap times every
artefact once, each interleaved with full precision in PyTorch; every other lap goes backwards.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.rivals.artefacts import ARTEFACT, Artefact, Kind, load
from benchmarks.rivals.subject import Subject, load_subject
from workers import quality
from workers.device import environment
from workers.device.threads import timeable
from workers.measurement import LatencySamples, Split
from workers.task import splits_with_data, workloads
from workers.timing import latency
from workers.timing.device_lock import DeviceLock
from workers.timing.estimates import Figure, latency_ratio
from workers.timing.latency import Contender

#: Passes of an artefact per lap, and seconds of its warm-up.
_REPEATS, _WARM_UP_S = 20, 0.2
#: The reference as a rival of itself: its ratio is 1 if the others' are right.
AGAIN = "PyTorch fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of one artefact."""

    name: str
    #: Median latency relative to full precision in PyTorch.
    ratio: Figure
    #: Its median latency, in ms.
    latency_ms: float
    #: Loss of accuracy relative to full precision's, on each split.
    accuracy_drop: Mapping[str, float]
    divergence: float
    mib: float
    #: Seconds until it was loaded and had run once, compilation included.
    loaded_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An artefact that runs."""

    artefact: Artefact
    model: nn.Module
    contender: Contender
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job_file", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task-file")
    parser.add_argument("--laps", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(environment.usable_cores())
    torch._inductor.config.freezing = True  # without it, inductor does not use int8 kernels
    subject = load_subject(given.job_file, given.task_file)
    again = Artefact(name=AGAIN, kind=Kind.EAGER, file="", bytes=0, options={"recipe": "fp32"})
    with torch.no_grad():
        loaded = [found for found in (loaded_or_refused(again, given.folder, subject),) if found]
        for description in sorted(given.folder.glob(f"*/{ARTEFACT}")):
            found = loaded_or_refused(Artefact.read(description.parent), description.parent, subject)
            loaded += [found] if found else []
        for measured in figures(subject, loaded, given.laps):
            print(json.dumps(asdict(measured)), flush=True)


def loaded_or_refused(artefact: Artefact, folder: Path, subject: Subject) -> Loaded | None:
    """Return an artefact once it has run; print why it cannot, and return None."""
    start = time.perf_counter()
    try:
        model = load(artefact, folder, subject)
        contender = contender_of(subject, model)
        contender.run()
    except Exception as error:  # runtimes raise anything
        reason = str(error).strip().splitlines()
        print(
            json.dumps({"name": artefact.name, "error": f"{type(error).__name__}: {(reason or [''])[0]}"}), flush=True
        )
        return None
    return Loaded(artefact=artefact, model=model, contender=contender, seconds=time.perf_counter() - start)


def contender_of(subject: Subject, model: nn.Module) -> Contender:
    """Return the timed pass of a model in the subject's place."""
    (timed, *_) = workloads(subject.task, subject.batch_size).values()
    state = timed.prepare(model)
    return Contender(install=lambda: None, run=timeable(model, lambda: timed.run(model, state)))


def figures(subject: Subject, loaded: Sequence[Loaded], laps: int) -> list[Measured]:
    """Return the figures of all artefacts, in their order."""
    samples = timed_in_turns(subject, [each.contender for each in loaded], laps)
    splits = splits_with_data(subject.task)
    full = {split: quality.outputs_and_judged(subject.task, subject.model, split) for split in splits}
    return [
        figures_of(
            subject, each, timed, {split: judged for split, (_, judged) in full.items()}, full[Split.EVALUATION][0]
        )
        for each, timed in zip(loaded, samples, strict=True)
    ]


def figures_of(
    subject: Subject,
    loaded: Loaded,
    samples: LatencySamples,
    full: Mapping[Split, torch.Tensor],
    reference: torch.Tensor,
) -> Measured:
    """Return the figures of one artefact.

    Args:
        subject: the model it stands for.
        loaded: the artefact.
        samples: its latencies.
        full: what the accuracy of full precision takes, of each split.
        reference: outputs of full precision on the evaluation split.
    """
    drops = {}
    divergence = float("nan")
    for split, judged in full.items():
        outputs, own = quality.outputs_and_judged(subject.task, loaded.model, split)
        accuracy, whole = (quality.number(subject.task.accuracy(each, split)) for each in (own, judged))
        drops[str(split)] = 1.0 - accuracy / whole
        if split is Split.EVALUATION:
            divergence = float(quality.divergence(outputs, reference, subject.task.output_kind).mean())
    return Measured(
        name=loaded.artefact.name,
        ratio=latency_ratio(samples),
        latency_ms=float(np.median(samples.candidate_ms)),
        accuracy_drop=drops,
        divergence=divergence,
        mib=loaded.artefact.bytes / (1 << 20),
        loaded_s=loaded.seconds,
    )


def timed_in_turns(subject: Subject, contenders: Sequence[Contender], laps: int) -> list[LatencySamples]:
    """Return the latencies of all contenders, each interleaved with full precision, in so many laps."""
    reference = contender_of(subject, subject.model)
    found: list[list[LatencySamples]] = [[] for _ in contenders]
    with DeviceLock("cpu").exclusive():
        for lap in range(laps):
            numbers = range(len(contenders))
            for number in numbers if lap % 2 == 0 else reversed(numbers):
                timed = latency.measure(
                    contenders[number],
                    reference,
                    batch_size=subject.batch_size,
                    repeats=_REPEATS,
                    warmup_s=_WARM_UP_S,
                )
                found[number].append(timed)
            print(f"lap {lap + 1} of {laps}", file=sys.stderr, flush=True)
    return [joined(parts) for parts in found]


def joined(parts: Sequence[LatencySamples]) -> LatencySamples:
    """Return the samples of several series of one contender as one."""
    return LatencySamples(
        batch_size=parts[0].batch_size,
        candidate_ms=np.concatenate([part.candidate_ms for part in parts]),
        reference_ms=np.concatenate([part.reference_ms for part in parts]),
    )


if __name__ == "__main__":
    main()
