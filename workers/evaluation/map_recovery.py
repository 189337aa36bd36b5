"""Recovery of maps: learns the weights of a map, and measures its quality with them."""

import time
from collections.abc import Mapping

from search_spaces.quantization_map import QuantizationMap
from workers.evaluation.deployment import Deployment
from workers.evaluation.map_quality import MapQuality
from workers.measurement import Measurement
from workers.model.prepared import PreparedModel
from workers.model.skeleton import sharing_weights
from workers.progress import Report
from workers.recovered import Recovered, RecoverySettings
from workers.recovery.learned import decoded, install, without_means
from workers.recovery.recover import recover
from workers.task import Split, Task, splits
from workers.timing.device_lock import DeviceLock


class MapRecovery:
    """Recovers maps of one model."""

    def __init__(self, task: Task, reference: Deployment, lock: DeviceLock, report: Report) -> None:
        """Recover maps of the model that ``reference`` deploys; everything is compared with its full precision."""
        self._task, self._reference, self._lock, self._report = task, reference, lock, report

    def of(self, choices: Mapping[str, str], deployment: Deployment, settings: RecoverySettings) -> Recovered:
        """Return a map with learned weights, and its quality on the backend of ``deployment``.

        Raises:
            TaskError: if the task has too few calibration samples.
            MapError, ChoiceError, CalibrationError: if the map cannot run; see ``PreparedModel.apply``.
        """
        prepared = deployment.prepared
        prepared.apply(choices)  # refuses what cannot run
        prepared.reset()
        self._reference.deployed.apply({})
        model = sharing_weights(self._reference.prepared.model)
        quantization = QuantizationMap.from_names(choices, prepared.ranges, prepared.weight_bits)
        with self._lock.shared():
            report, learned = recover(
                self._task,
                model,
                deployment.layers,
                quantization,
                deployment.backend,
                settings,
                kernels=deployment.description.kernels,
                report=self._report,
            )
        if not learned:
            return Recovered(report=report, learned=learned, measurement=None)
        layers = decoded(learned)
        install(model, quantization, layers)
        return Recovered(
            report=report,
            learned=learned,
            measurement=self._measured(
                choices,
                deployment,
                PreparedModel(
                    model,
                    deployment.layers,
                    deployment.backend,
                    without_means(prepared.ranges, layers),
                    weight_bits=prepared.weight_bits,
                    kernels=deployment.description.kernels,
                ),
            ),
        )

    def _measured(self, choices: Mapping[str, str], deployment: Deployment, prepared: PreparedModel) -> Measurement:
        """Return the quality of a map of the model with learned weights; its latency is that without them."""
        start, at_start = time.perf_counter(), deployment.environment()
        deployed = deployment.backend.deploy(self._task, prepared, [1])
        quality = MapQuality(self._task, deployed, self._lock, self._report, reference=self._reference.quality)
        accuracy, divergence = quality.of(choices, Split.EVALUATION)
        shifted = quality.of(choices, Split.SHIFTED) if Split.SHIFTED in splits(self._task) else None
        held_out = quality.held_out_accuracies(choices)
        return Measurement(
            accuracy=accuracy,
            divergence=divergence,
            weight_bytes=deployed.weight_bytes(),
            latency=(),
            working_bytes=None,
            shifted=shifted,
            held_out=held_out,
            held_out_missing=quality.held_out_missing,
            seconds=time.perf_counter() - start,
            forward_seconds=quality.forward_seconds,
            environment=at_start,
        )
