"""Peak memory of preparing, probing and measuring a language model, compared with the bytes of its checkpoint.

    python benchmarks/memory.py [--blocks N] [--hidden N] [--dtype TYPE] [--cache-mib N] [--steps STEP ...]

A Llama with random weights is written as safetensors in shards of 200 MB. Sizes are in fp32, whatever the type of the
weights. Each step runs in its own process, after the steps it needs. The benchmark watches the process from outside:
its anonymous memory and its file pages, which for fp32 weights belong to the page cache. The memory before the model is
built is subtracted: interpreter, libraries, and the tiny model that loaded them.

"fixed" is the peak of the same step with a model of almost no weights and the same text, vocabulary and settings;
"less fixed" is what the size of the model adds. Finally two workers hold the same uniform map, and pages that they
share count once (PSS).
"""

import argparse
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from search_spaces.choice import CHOICES, FULL_PRECISION
from workers.candidate import Candidate
from workers.evaluation.evaluator import Evaluator
from workers.setup import MeasurementSettings, WorkerSetup
from workers.tasks import build_task
from workers.tasks.checkpoints import quiet_transformers

TEXT = {"prompt_tokens": 64, "windows": 24, "batch_size": 4}
UNIFORM = "int8_static"
#: Seconds between two samples of a process.
INTERVAL_S = 0.005

#: Does what comes before a step, and returns the step.
Prepare = Callable[[WorkerSetup], Callable[[], object]]
STEPS: dict[str, Prepare] = {
    "build": lambda setup: build_task(setup.task, setup.task_parameters).build_model,
    "evaluator": lambda setup: lambda: Evaluator(setup),
    "sensitivity": lambda setup: Evaluator(setup).sensitivity,
    "latencies": lambda setup: Evaluator(setup).layer_latencies,
    "probe": lambda setup: Evaluator(setup).probe,
    UNIFORM: lambda setup: measuring(Evaluator(setup), lambda names: UNIFORM if UNIFORM in names else names[0]),
    "mixed": lambda setup: measuring(Evaluator(setup), random.Random(0).choice),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=9, help="transformer blocks, of 45 MB each at the default width")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the model, a multiple of 256")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the checkpoint")
    parser.add_argument("--cache-mib", type=int, default=4096, help="bound of prepared layers, as in a job file")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--inside", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        run_step(STEPS[given.steps[0]], given.inside, given.cache_mib << 20)
    else:
        sizes = {**of_width(given.hidden), "num_hidden_layers": given.blocks}
        report_all(given.steps, sizes, given.dtype, given.cache_mib)


def of_width(hidden: int) -> dict[str, int]:
    """Return sizes in the proportions of a Llama with 7 billion parameters; four heads share keys and values.

    Tokens are bytes; the rest of the vocabulary has weights only.
    """
    return {
        "vocab_size": 4096,
        "num_hidden_layers": 1,
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_attention_heads": max(1, hidden // 64),
        "num_key_value_heads": max(1, hidden // 256),
    }


def report_all(steps: list[str], sizes: Mapping[str, int], dtype: str, cache_mib: int) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as small:
        size = write_checkpoint(folder, sizes, dtype)
        write_checkpoint(small, of_width(64), dtype)
        print(f"{size / 1e6:.0f} MB in fp32, written in {dtype}, cache {cache_mib} MiB; peaks as multiples of that")
        print(
            f"{'step':14}{'anonymous':>10}{'files':>8}{'both':>8}{'fixed':>8}{'less fixed':>12}{'seconds':>10}",
            flush=True,
        )
        for step in steps:
            report(step, folder, small, cache_mib, size)
        if UNIFORM in steps:
            report_two_workers(folder, cache_mib, size)


def write_checkpoint(folder: str, sizes: Mapping[str, int], dtype: str) -> int:
    """Return the bytes of the weights in fp32."""
    torch.manual_seed(0)
    with quiet_transformers():
        from tokenizers.pre_tokenizers import ByteLevel
        from transformers import GPT2Tokenizer, LlamaConfig, LlamaForCausalLM

        vocabulary = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
        GPT2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
        model = LlamaForCausalLM(LlamaConfig(**sizes))
        size = sum(weight.nbytes for weight in model.parameters())
        model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="200MB")
    return size


class Watched:
    """A process that waits before it builds the model, before the step, and after it, until it may continue."""

    def __init__(self, step: str, folder: str, cache_mib: int) -> None:
        command = [sys.executable, __file__, "--inside", folder, "--cache-mib", str(cache_mib), "--steps", step]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        #: Largest bytes since the process last continued, by their names in /proc.
        self.peak: dict[str, int] = {}

    def go_on(self) -> None:
        """Let the process run until it waits again."""
        assert self._process.stdin is not None
        print("go on", file=self._process.stdin, flush=True)
        self.wait()

    def wait(self) -> None:
        """Watch the process until it waits."""
        self.peak = self.held("status")
        while not select.select([self._process.stdout], [], [], INTERVAL_S)[0]:
            self.peak = {name: max(self.peak[name], held) for name, held in self.held("status").items()}
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise SystemExit(f"the process ended with {self._process.wait()}")

    def held(self, file: str) -> dict[str, int]:
        """Return the byte counts in a file of /proc."""
        rows = (line.split() for line in Path(f"/proc/{self._process.pid}/{file}").read_text().splitlines())
        return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows if row[-1] == "kB"}

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()


@contextmanager
def watched(step: str, folder: str, cache_mib: int) -> Iterator[Watched]:
    process = Watched(step, folder, cache_mib)
    try:
        process.wait()
        yield process
    finally:
        process.end()


def report(step: str, folder: str, small: str, cache_mib: int, size: int) -> None:
    start = time.perf_counter()
    anonymous, files, both = (held / size for held in peaks(step, folder, cache_mib))
    seconds = time.perf_counter() - start
    fixed = peaks(step, small, cache_mib)[-1] / size
    print(
        f"{step:14}{anonymous:10.2f}{files:8.2f}{both:8.2f}{fixed:8.2f}{both - fixed:12.2f}{seconds:10.1f}", flush=True
    )


def peaks(step: str, folder: str, cache_mib: int) -> list[int]:
    """Return the peaks of a step in bytes: anonymous memory, pages of files, and both."""
    with watched(step, folder, cache_mib) as process:
        before = process.held("status")
        process.go_on()
        process.go_on()
    return [process.peak[name] - before[name] for name in ("RssAnon", "RssFile", "VmRSS")]


def report_two_workers(folder: str, cache_mib: int, size: int) -> None:
    with watched(UNIFORM, folder, cache_mib) as one, watched(UNIFORM, folder, cache_mib) as other:
        before = [process.held("smaps_rollup")["Pss"] for process in (one, other)]
        for process in (one, other, one, other):
            process.go_on()
        after = [process.held("smaps_rollup")["Pss"] for process in (one, other)]
    print(f"two workers with {UNIFORM}: {(sum(after) - sum(before)) / size:.2f} together (PSS)")


def run_step(prepare: Prepare, folder: str, cache_bytes: int) -> None:
    """Run in the watched process."""
    measurement = MeasurementSettings(repeats=20, warmup_s=0.0)
    Evaluator(WorkerSetup(task="causal-lm", task_parameters=TEXT, measurement=measurement))
    stop()
    setup = WorkerSetup(
        task="causal-lm",
        task_parameters={"checkpoint": folder, **TEXT},
        measurement=measurement,
        cache_bytes=cache_bytes,
    )
    step = prepare(setup)
    stop()
    kept = step()
    stop()
    del kept


def stop() -> None:
    print("stopped", flush=True)
    sys.stdin.readline()


def measuring(evaluator: Evaluator, choose: Callable[[list[str]], str]) -> Callable[[], Any]:
    refusals = evaluator.description.refusals
    legal = {
        layer.name: [name for name in CHOICES if name not in refusals[layer.name]]
        for layer in evaluator.description.layers
    }
    choices = {layer: choose(names) if len(names) > 1 else FULL_PRECISION.name for layer, names in legal.items()}
    return lambda: (evaluator.measure(Candidate(number=0, choices=choices)), evaluator)


if __name__ == "__main__":
    main()
