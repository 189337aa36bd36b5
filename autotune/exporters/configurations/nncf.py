"""The ``nncf`` format: calls of NNCF on an OpenVINO model, whose scopes ignore all but the layers of one choice."""

import inspect
import json
import re
from typing import Any

from autotune.exporters.configurations.base import Configuration
from search_spaces.choice import LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import QuantizationMap
from workers.backends.rounding.weights import INT4_GROUP

#: Choice -> function of NNCF, and its arguments apart from the scope, in the order of the calls.
_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8_weight_only": ("compress_weights", {"mode": "int8_sym"}),
    "int4_weight_only": (
        "compress_weights",
        {"mode": "int4_asym", "group_size": INT4_GROUP, "ratio": 1.0, "all_layers": True},
    ),
    "int8_static": ("quantize", {"preset": "mixed"}),
}
_KINDS = (LayerKind.LINEAR, LayerKind.CONV1D, LayerKind.CONV2D, LayerKind.EMBEDDING)
#: Operations of OpenVINO that read a layer's weights.
_OPERATIONS = "MatMul|Convolution|GroupConvolution|Gather"


class NncfConfiguration(Configuration):
    """Writes the arguments of ``nncf.compress_weights`` and ``nncf.quantize``, one call per choice."""

    name = "nncf"
    file = "nncf.json"
    library = "nncf"
    written_for = "NNCF 3.4 and OpenVINO 2026.4"
    choices = tuple(_CALLS)
    usage = (
        "    import json, nncf, openvino\n"
        '    calls = json.load(open("nncf.json"))\n'
        "    model = openvino.convert_model(model, example_input=batch)  # operations have the layers' names\n"
        '    for call in calls["compress_weights"]:\n'
        '        call["mode"] = nncf.CompressWeightsMode(call["mode"])\n'
        '        call["ignored_scope"] = nncf.IgnoredScope(**call["ignored_scope"])\n'
        "        model = nncf.compress_weights(model, **call)\n"
        '    for call in calls["quantize"]:\n'
        '        call["preset"] = nncf.QuantizationPreset(call["preset"])\n'
        '        call["ignored_scope"] = nncf.IgnoredScope(**call["ignored_scope"])\n'
        "        model = nncf.quantize(model, nncf.Dataset(batches), **call)"
    )
    differs = (
        "NNCF calibrates static ranges again and corrects biases, its int4 zero points are integers, its int8 "
        "embeddings have no offsets, and its int4 embeddings have groups"
    )

    def refuses_layer(self, layer: Layer, choice: LayerChoice) -> str | None:
        if layer.kind not in _KINDS:
            return f"supports linear layers, convolutions and embeddings, but this is a layer of kind {layer.kind}"
        if choice.needs_calibration and layer.kind is LayerKind.EMBEDDING:
            return "an embedding has no activation to calibrate"
        if choice.precision is Precision.INT4 and (
            layer.kind not in (LayerKind.LINEAR, LayerKind.EMBEDDING) or layer.weight_shape[1] % INT4_GROUP
        ):
            return f"NNCF's int4 needs a linear layer or embedding with features divisible by {INT4_GROUP}"
        return None

    def text(self, quantization: QuantizationMap) -> str:
        calls: dict[str, list[dict[str, Any]]] = {function: [] for function, _ in _CALLS.values()}
        for name, (function, arguments) in _CALLS.items():
            layers = [layer for layer, choice in quantization.choices.items() if choice.name == name]
            if layers:
                calls[function].append(arguments | {"ignored_scope": _all_but(layers)})
        return json.dumps(calls, indent=2) + "\n"

    def validate(self, text: str) -> None:
        import nncf

        values = {"mode": nncf.CompressWeightsMode, "preset": nncf.QuantizationPreset}
        for function, calls in json.loads(text).items():
            for arguments in calls:
                inspect.signature(getattr(nncf, function)).bind_partial(**arguments)
                nncf.IgnoredScope(**arguments["ignored_scope"])
                for name in values.keys() & arguments:
                    values[name](arguments[name])


def _all_but(layers: list[str]) -> dict[str, Any]:
    """Return a scope that matches every operation except those of ``layers``, and except weights (``self.*``)."""
    names = "|".join(map(re.escape, layers))
    pattern = rf"(?!self\.|__module\.({names})/[^/]+/({_OPERATIONS})(_\d+)?$)"
    return {"patterns": [pattern], "validate": False}
