"""The ``neural-compressor`` format: JSON for Intel Neural Compressor, with one section per algorithm."""

import json
import re
from typing import Any

from autotune.exporters.configurations.base import Configuration
from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import QuantizationMap
from workers.backends.rounding.weights import INT4_GROUP

#: Algorithm -> settings of layers that are not named.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "static_quant": {"w_dtype": "fp32", "act_dtype": "fp32"},
    "pt2e_dynamic_quant": {"w_dtype": "fp32", "act_dtype": "fp32"},
    "rtn": {"dtype": "fp32"},
    "gptq": {"dtype": "fp32"},
}
_W8A8 = {"w_dtype": "int8", "w_sym": True, "w_granularity": "per_channel"}
_INT4 = {"dtype": "int", "bits": 4, "use_sym": False, "group_size": INT4_GROUP}
_INPUT = {"act_dtype": "uint8", "act_sym": False, "act_granularity": "per_tensor", "act_algo": "minmax"}
#: Choice -> algorithm, and its settings for a layer.
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8_static": ("static_quant", _W8A8 | _INPUT),
    "int8_dynamic": ("pt2e_dynamic_quant", _W8A8 | _INPUT),
    "int8_weight_only": ("rtn", {"dtype": "int", "bits": 8, "use_sym": True, "group_size": -1}),
    "int4_weight_only": ("rtn", _INT4),
    "int4_weight_only_gptq": ("gptq", _INT4 | {"act_order": True, "static_groups": True}),
}


class NeuralCompressorConfiguration(Configuration):
    """Writes a composed configuration by layer name; Neural Compressor reads the names as regular expressions."""

    name = "neural-compressor"
    file = "neural_compressor.json"
    library = "neural-compressor"
    written_for = "Neural Compressor 3.10"
    choices = tuple(_SETTINGS)
    usage = (
        "    import json\n"
        "    from neural_compressor.common.base_config import config_registry\n"
        "    import neural_compressor.torch.quantization\n"
        '    known = config_registry.get_cls_configs()["torch"]\n'
        '    sections = json.load(open("neural_compressor.json")).items()\n'
        "    configs = [known[algorithm].from_dict(section) for algorithm, section in sections]  # add up with +\n"
        "    # ComposableConfig.from_dict (3.10) reads the first section only"
    )
    differs = (
        "Neural Compressor calibrates static ranges and GPTQ again, and applies its algorithms one after the other"
    )

    def refuses_layer(self, layer: Layer, choice: LayerChoice) -> str | None:
        if layer.kind is not LayerKind.LINEAR:
            return f"supports linear layers only, but this is a layer of kind {layer.kind}"
        return None

    def text(self, quantization: QuantizationMap) -> str:
        document: dict[str, Any] = {}
        for name, choice in quantization.choices.items():
            if choice != FULL_PRECISION:
                algorithm, settings = _SETTINGS[choice.name]
                section = document.setdefault(algorithm, {"local": {}, "global": _DEFAULTS[algorithm]})
                section["local"][f"{re.escape(name)}$"] = settings
        document = document or {"rtn": {"local": {}, "global": _DEFAULTS["rtn"]}}
        return json.dumps(document, indent=2) + "\n"

    def validate(self, text: str) -> None:
        import neural_compressor.torch.quantization  # noqa: F401 - registers the algorithms of PyTorch
        from neural_compressor.common.base_config import config_registry

        known = config_registry.get_cls_configs()["torch"]
        for algorithm, section in json.loads(text).items():
            kept = known[algorithm].from_dict(section).to_dict().get("local", {})  # absent if no layer is named
            for layer, settings in section["local"].items():
                # The library silently drops unknown settings.
                lost = [name for name, value in settings.items() if kept[layer].get(name) != value]
                if lost:
                    raise ValueError(f"{algorithm} of {layer} lost {lost}")
