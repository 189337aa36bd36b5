"""The ``llm-compressor`` format: a recipe with the groups of our compressed-tensors checkpoints."""

from typing import Any

import yaml
from torch import nn

from autotune.exporters import compressed_schemes, pretrained
from autotune.exporters.configurations.base import Configuration, header
from search_spaces.choice import CHOICES, LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import QuantizationMap


class LlmCompressorConfiguration(Configuration):
    """Writes a recipe for ``llmcompressor.oneshot``."""

    name = "llm-compressor"
    file = "recipe.yaml"
    library = "llmcompressor"
    written_for = "llm-compressor 0.14"
    choices = compressed_schemes.NAMES
    usage = (
        "    from llmcompressor import oneshot\n"
        '    oneshot(model=model, dataset=dataset, recipe="recipe.yaml", output_dir="compressed")'
    )
    differs = (
        "llm-compressor calibrates static ranges and GPTQ again on its own data, uses dynamic ranges per token, "
        "and its int4 groups have no zero points; the format compressed-tensors keeps our calibration"
    )

    def refuses_layer(self, layer: Layer, choice: LayerChoice) -> str | None:
        return compressed_schemes.refusal(layer, choice)

    def refuses_model(self, model: nn.Module) -> str | None:
        return pretrained.refusal(model)

    def text(self, quantization: QuantizationMap) -> str:
        by_modifier: dict[str, dict[str, Any]] = {}
        for name, group in compressed_schemes.groups(quantization.choices).items():
            modifier = "GPTQModifier" if CHOICES[name].is_gptq else "QuantizationModifier"
            by_modifier.setdefault(modifier, {"config_groups": {}})["config_groups"][name] = group
        recipe = {"quant_stage": {"quant_modifiers": by_modifier or {"QuantizationModifier": {"config_groups": {}}}}}
        return header(self) + yaml.dump(recipe, Dumper=_NoAliases, sort_keys=False)

    def validate(self, text: str) -> None:
        from llmcompressor.recipe import Recipe

        for modifier in Recipe.create_instance(text).modifiers:
            modifier.resolve_quantization_config()


class _NoAliases(yaml.SafeDumper):
    """Repeats a scheme that groups share, because that is easier to read than a YAML alias."""

    def ignore_aliases(self, data: object) -> bool:
        return True
