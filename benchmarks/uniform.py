"""Compare uniform maps of a task: divergence, accuracy, bytes, and latency relative to full precision.

    python -m benchmarks.uniform minilm-lee int8_static int8_static_smooth int8_dynamic
    python -m benchmarks.uniform minilm-lee fp32 int8_static --on onnxruntime

With ``--on``, maps run on that backend, beside full precision on the other. Tasks of the search benchmark and
``efficientnet-lite0`` are also available. Layers that cannot take a choice stay in full precision.
"""

import argparse
import json
import os

import numpy as np

import benchmarks.models.efficientnet
import benchmarks.search.models  # noqa: F401 - registers its tasks
from workers.candidate import Candidate
from workers.evaluation.evaluator import Evaluator
from workers.setup import CalibrationSettings, KnownKernels, MeasurementSettings, WorkerSetup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("choices", nargs="+")
    parser.add_argument("--parameters", type=json.loads, default={}, help="parameters of the task, as JSON")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--on", default="", help="backend of the maps, if it is another")
    parser.add_argument("--bias-correction", action="store_true")
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    evaluator = Evaluator(
        WorkerSetup(
            task=arguments.task,
            task_parameters=arguments.parameters,
            backend=arguments.backend,
            others={arguments.on: KnownKernels()} if arguments.on else {},
            calibration=CalibrationSettings(smoothing=True, moments=True, bias_correction=arguments.bias_correction),
            measurement=MeasurementSettings(repeats=arguments.repeats),
        )
    )
    described, calibration = evaluator.description.on(arguments.on), evaluator.description.calibration
    print(
        f"{described.environment.hardware}, load {os.getloadavg()[0]:.1f}; calibration {calibration.seconds:.1f} s, "
        f"smoothing {calibration.smoothing_seconds:.1f} s, moments {calibration.moments_seconds:.1f} s"
    )
    for number, choice in enumerate(arguments.choices):
        names = {x.name: "fp32" if choice in described.refusals[x.name] else choice for x in described.layers}
        found = evaluator.measure(Candidate(number=number, choices=names, backend=arguments.on))
        samples = found.latency[0]
        ratio = np.median(samples.candidate_ms) / np.median(samples.reference_ms)
        print(
            f"{choice:21} divergence {found.divergence:.2e}, accuracy {found.accuracy:.4f}, "
            f"{found.weight_bytes / 2**20:.2f} MiB, latency ratio {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
