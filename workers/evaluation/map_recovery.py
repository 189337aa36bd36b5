"""Recovery of a map: learns its weights, and measures its quality with them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from search_spaces.quantization_map import QuantizationMap, without_means
from workers.evaluation.deployment import Deployment
from workers.measurement import Measurement
from workers.model.skeleton import sharing_weights
from workers.progress import Report
from workers.recovered import Recovered, RecoverySettings
from workers.recovery.learned import LearnedLayer, decoded, install
from workers.recovery.recover import recover
from workers.setup import Calibration, KnownKernels
from workers.task import Split, Task, splits
from workers.timing.device_lock import DeviceLock

#: Deploys the model with what the layers of a map learned.
Deploy = Callable[[QuantizationMap, Mapping[str, LearnedLayer]], Deployment]


def with_learned(
    build: Callable[..., Deployment],
    reference: Deployment,
    calibration: Calibration,
    plain: Deployment,
    quantization: QuantizationMap,
    learned: Mapping[str, LearnedLayer],
) -> Deployment:
    """Return the model as ``plain`` deploys it, but with what the layers of a map learned.

    Args:
        build: builds a deployment; see ``Deployment``.
        reference: the model whose full precision maps are compared with.
        calibration: of the layers.
        plain: the model on the map's backend.
        quantization: the map, with its ranges.
        learned: layer name -> what it learned.

    Raises:
        MapError: if the weights were learned for another model.
    """
    plain.deployed.apply({})
    model, prepared = sharing_weights(plain.prepared.model), plain.prepared
    install(model, quantization, learned)
    return build(
        plain.backend,
        model=model,
        known=KnownKernels(weight_bits=prepared.weight_bits, kernels=plain.description.kernels),
        calibration=replace(calibration, ranges=without_means(prepared.ranges, learned)),
        reference=reference,
    )


def recovered(
    task: Task,
    choices: Mapping[str, str],
    plain: Deployment,
    deploy: Deploy,
    settings: RecoverySettings,
    lock: DeviceLock,
    report: Report,
) -> Recovered:
    """Return a map with learned weights, and its quality.

    Args:
        task: the model's task.
        choices: layer name -> choice name.
        plain: the model on the map's backend.
        deploy: deploys it there with learned weights.
        settings: how to learn.
        lock: the lock of the device.
        report: gets every step.

    Raises:
        TaskError: if the task has too few calibration samples.
        MapError, ChoiceError, CalibrationError: if the map cannot run; see ``PreparedModel.apply``.
    """
    prepared = plain.prepared
    prepared.apply(choices)  # refuses what cannot run
    plain.deployed.apply({})
    quantization = QuantizationMap.from_names(choices, prepared.ranges, prepared.weight_bits)
    with lock.shared():
        done, learned = recover(
            task,
            sharing_weights(prepared.model),
            plain.layers,
            quantization,
            plain.backend,
            settings,
            kernels=plain.description.kernels,
            report=report,
        )
    if not learned:
        return Recovered(report=done, learned=learned, measurement=None)
    measurement = _measured(task, choices, deploy(quantization, decoded(learned)))
    return Recovered(report=done, learned=learned, measurement=measurement)


def _measured(task: Task, choices: Mapping[str, str], deployment: Deployment) -> Measurement:
    """Return the quality of a map; its latency is that without learned weights."""
    start, at_start, quality = time.perf_counter(), deployment.environment(), deployment.quality
    accuracy, divergence = quality.of(choices, Split.EVALUATION)
    shifted = quality.of(choices, Split.SHIFTED) if Split.SHIFTED in splits(task) else None
    held_out = quality.held_out_accuracies(choices)
    return Measurement(
        accuracy=accuracy,
        divergence=divergence,
        weight_bytes=deployment.deployed.weight_bytes(),
        latency=(),
        working_bytes=None,
        shifted=shifted,
        held_out=held_out,
        held_out_missing=quality.held_out_missing,
        seconds=time.perf_counter() - start,
        forward_seconds=quality.forward_seconds,
        environment=at_start,
    )
