"""Maps of the tiny models of ``export_tasks.py``, which has to be loaded before."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from autotune.maps.map_file import MappedMoments, MappedSmoothing
from search_spaces.choice import choice_named
from search_spaces.discovery import discover
from search_spaces.quantization_map import ActivationRange
from workers.calibration.calibrate import calibrate, with_moments, with_smoothing
from workers.device.processor import this_processor
from workers.model.attention import unroll_attention
from workers.model.full_precision import identified_model
from workers.setup import CalibrationSettings
from workers.task import Split
from workers.tasks import build_task


@functools.cache
def blank(task_name: str, backend: str = "cpu") -> Mapping[str, Any]:
    """A map of a task with every layer in full precision and every range calibrated."""
    task = build_task(task_name, {})
    model, print_of_weights = identified_model(task)
    batch = task.evaluation(Split.EVALUATION)[0]
    unroll_attention(model, lambda m: task.forward(m, batch))
    layers = discover(model, lambda m: task.forward(m, batch))
    found = calibrate(model, layers, task.calibration(), task.forward, CalibrationSettings())
    # The integers of exports are those that this processor gets right.
    bits = dict.fromkeys((layer.name for layer in layers), this_processor().int8_weight_bits)
    found = with_smoothing(found, model, layers, task.calibration(), task.forward, bits)
    found = with_moments(found, model, layers, task.calibration(), task.forward)
    return {
        "schema": "autotune.map/v1",
        "task": task_name,
        "task_parameters": {},
        "backend": backend,
        "model_fingerprint": print_of_weights,
        "layers": {
            layer.name: {
                "kind": layer.kind,
                "weight_shape": list(layer.weight_shape),
                "choice": "fp32",
                **calibrated(found.ranges.get(layer.name)),
            }
            for layer in layers
        },
        "measurement": {},
        "promised": {"accuracy": {"value": 1.0}},
        "provenance": {
            "job": "j", "job_name": "tiny", "trial": 1, "measured_at": "2026-01-01T00:00:00Z", "seed": 0,
            "calibration": {}, "calibration_samples": 16, "environment": {},
        },
    }  # fmt: skip


def calibrated(known: ActivationRange | None) -> dict[str, Any]:
    """What a map's file says of a layer's input."""
    if known is None:
        return {}
    smoothing, moments = MappedSmoothing.of(known), MappedMoments.of(known)
    return {
        "input_range": [known.low, known.high],
        "smoothing": smoothing and smoothing.model_dump(),
        "moments": moments and moments.model_dump(),
    }


def with_choices(task_name: str, choices: Mapping[str, str], backend: str = "cpu") -> dict[str, Any]:
    """The map that gives layers these choices, and full precision to the others."""
    document: dict[str, Any] = json.loads(json.dumps(blank(task_name, backend)))
    bits = this_processor().int8_weight_bits
    for name, choice in choices.items():
        layer = document["layers"][name]
        layer |= {"choice": choice, "weight_bits": choice_named(choice).with_weight_bits(bits).weight_bits}
    return document
