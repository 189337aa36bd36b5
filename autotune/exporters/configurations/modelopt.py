"""The ``modelopt`` format: a ``quant_cfg`` for NVIDIA ModelOpt, with one entry per quantizer by exact name."""

from typing import Any

import yaml

from autotune.exporters.configurations.base import Configuration, header
from search_spaces.choice import FULL_PRECISION, LayerChoice, Precision
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import QuantizationMap
from workers.backends.rounding.weights import INT4_GROUP


class ModelOptConfiguration(Configuration):
    """Writes the ordered list for ``mtq.quantize``, with static ranges as constants."""

    name = "modelopt"
    file = "quant_cfg.yaml"
    library = "nvidia-modelopt"
    written_for = "ModelOpt 0.47"
    choices = ("int8_static", "int8_dynamic", "int8_weight_only", "int4_weight_only")
    usage = (
        "    import yaml, modelopt.torch.quantization as mtq\n"
        '    config = yaml.safe_load(open("quant_cfg.yaml"))\n'
        "    model = mtq.quantize(model, config, forward_loop)  # runs the model once; static ranges are already fixed"
    )
    differs = (
        "ModelOpt's int8 inputs are symmetric, so a static range reaches as far below zero as above, and int4 groups "
        "have no zero points"
    )

    def refuses_layer(self, layer: Layer, choice: LayerChoice) -> str | None:
        if not layer.kind.is_product:
            return f"supports linear layers and convolutions, but this is a layer of kind {layer.kind}"
        if choice.precision is Precision.INT4 and (
            layer.kind is not LayerKind.LINEAR or layer.weight_shape[1] % INT4_GROUP
        ):
            return f"int4 needs a linear layer with input features divisible by {INT4_GROUP}"
        return None

    def text(self, quantization: QuantizationMap) -> str:
        entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
        for name, choice in quantization.choices.items():
            if choice != FULL_PRECISION:
                weights = {"num_bits": 4, "block_sizes": {-1: INT4_GROUP}}
                weights = weights if choice.precision is Precision.INT4 else {"num_bits": 8, "axis": 0}
                entries.append({"quantizer_name": f"{name}.weight_quantizer", "cfg": weights})
            if choice.needs_int8_products:
                inputs: dict[str, Any] = {"num_bits": 8, "axis": None}
                if choice.needs_calibration:
                    reach = quantization.ranges[name]
                    inputs["constant_amax"] = max(-reach.low, reach.high)
                else:
                    inputs["type"] = "dynamic"
                entries.append({"quantizer_name": f"{name}.input_quantizer", "cfg": inputs})
        return header(self) + yaml.safe_dump({"quant_cfg": entries, "algorithm": "max"}, sort_keys=False)

    def validate(self, text: str) -> None:
        from modelopt.torch.quantization.config import QuantizeConfig

        QuantizeConfig.model_validate(yaml.safe_load(text))
