"""The compressed-tensors checkpoint: our integers and ranges, and a configuration that keeps vLLM's rules."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from autotune import exporters
from autotune.errors import ExportError
from autotune.exporters import compressed_layers, compressed_schemes, pretrained
from autotune.exporters.base import Source
from autotune.exporters.compressed_exporter import CompressedTensorsExporter
from autotune.maps.map_file import MapFile, MappedLayer
from search_spaces.choice import CHOICES, choice_named
from search_spaces.discovery import discover
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends.rounding.weights import int8_per_channel

RANGE = ActivationRange(low=-1.5, high=2.5)
BLOCK = "model.layers.0"
CHOSEN = {
    f"{BLOCK}.self_attn.q_proj": "int8_dynamic",
    f"{BLOCK}.self_attn.k_proj": "int8_dynamic",
    f"{BLOCK}.self_attn.v_proj": "int8_dynamic",
    f"{BLOCK}.self_attn.o_proj": "int8_weight_only",
    f"{BLOCK}.mlp.gate_proj": "int8_static",
    f"{BLOCK}.mlp.up_proj": "int8_static",
    f"{BLOCK}.mlp.down_proj": "int4_weight_only",
}


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()


def source(choices: Mapping[str, str], layers: Sequence[Layer] = ()) -> Source:
    """A source of whose file exporters read the layers only."""
    shape, reach = (64, 64), (RANGE.low, RANGE.high)
    mapped = {
        name: MappedLayer(kind=LayerKind.LINEAR, weight_shape=shape, choice=choice, input_range=reach)
        for name, choice in choices.items()
    }
    file = MapFile.model_construct(layers=mapped)
    return Source(file=file, task=None, model=llama(), layers=tuple(layers))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def layers() -> dict[str, Layer]:
    return {layer.name: layer for layer in discover(llama(), lambda m: m(torch.zeros(1, 4, dtype=torch.long)))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    CompressedTensorsExporter().write(source(CHOSEN), folder)
    return folder


def groups(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return config


def test_integers_and_ranges_are_the_ones_measured(folder: Path) -> None:
    tensors, model = load_file(folder / "model.safetensors"), llama()
    for name in (f"{BLOCK}.self_attn.q_proj", f"{BLOCK}.mlp.gate_proj"):
        values, scales = int8_per_channel(model.get_parameter(f"{name}.weight").detach())
        assert torch.equal(tensors[f"{name}.weight"], values)
        assert torch.equal(tensors[f"{name}.weight_scale"].flatten(), scales)
    scale, zero_point = RANGE.affine_uint8()
    assert tensors[f"{BLOCK}.mlp.gate_proj.input_scale"].item() == pytest.approx(scale)
    assert tensors[f"{BLOCK}.mlp.gate_proj.input_zero_point"].item() == zero_point - 128
    assert not any("input_scale" in name and "gate_proj" not in name and "up_proj" not in name for name in tensors)


def test_weights_take_the_room_their_precision_promises(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert tensors[f"{BLOCK}.self_attn.q_proj.weight"].dtype == torch.int8
    assert tensors[f"{BLOCK}.self_attn.o_proj.weight_packed"].nbytes == 64 * 64
    assert tensors[f"{BLOCK}.mlp.down_proj.weight_packed"].nbytes == 64 * 96 // 2
    assert tensors["lm_head.weight"].dtype == torch.float32


def test_int4_weights_err_no_more_than_those_that_reach_the_largest(folder: Path) -> None:
    with pretrained.no_progress_bar():
        loaded = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        loaded(torch.zeros(1, 4, dtype=torch.long))
    name = f"{BLOCK}.mlp.down_proj.weight"
    original = llama().get_parameter(name).detach().view(64, -1, 32)
    step = (original.abs().amax(dim=-1, keepdim=True) / 7.0).to(torch.bfloat16).float()
    uncut = (torch.clamp(torch.round(original / step), -8, 7) * step - original).square().sum(dim=-1)
    errors = (loaded.get_parameter(name).detach().view_as(original) - original).square().sum(dim=-1)
    assert (errors <= uncut + 1e-9).all()
    assert errors.sum() < 0.9 * uncut.sum()


@pytest.mark.parametrize("name", ["int8_dynamic", "int4_weight_only"])
def test_biases_are_corrected_by_what_the_library_rounds(name: str) -> None:
    torch.manual_seed(0)
    layer, means, choice = nn.Linear(64, 8), 3.0 * torch.randn(64), CHOICES[name]
    known = ActivationRange(low=-1.0, high=1.0, means=tuple(means.tolist()))
    weight = compressed_layers._tensors(layer, choice, None)["weight"]
    bias = compressed_layers._bias(layer, choice, known, weight)["bias"]
    with torch.no_grad():
        error, without = (float((F.linear(means, weight, b) - layer(means)).norm()) for b in (bias, layer.bias))
    assert error < 1e-3 * without
    assert compressed_layers._bias(layer, CHOICES["int4_weight_only_gptq"], known, weight) == {}


def test_configuration_names_every_linear_layer_once(folder: Path) -> None:
    config = groups(folder)
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "mixed-precision"
    assert config["quantization_status"] == "compressed"
    targets = [target for group in config["config_groups"].values() for target in group["targets"]]
    linear = {name for name, module in llama().named_modules() if isinstance(module, nn.Linear)}
    assert sorted([*targets, *config["ignore"]]) == sorted(linear)
    assert config["ignore"] == ["lm_head"]


CHOICES_IN_FORMAT = sorted(compressed_schemes.groups(CHOICES))


@pytest.mark.parametrize("name", CHOICES_IN_FORMAT)
def test_schemes_are_those_vllm_has(name: str) -> None:
    # Its documented rules: weights symmetric; int8 inputs static of the tensor, or dynamic of each token; weights
    # alone by channel or group, packed.
    scheme = compressed_schemes.groups({"layer": choice_named(name)})[name]
    weights, inputs = scheme["weights"], scheme.get("input_activations")
    assert weights["symmetric"]
    if inputs is None:
        assert scheme["format"] == "pack-quantized"
        assert weights["strategy"] in ("channel", "group")
    else:
        assert scheme["format"] == "int-quantized"
        assert weights["strategy"] == "channel"
        assert (inputs["strategy"], inputs["dynamic"]) in (("tensor", False), ("token", True))


def test_one_format_is_not_called_mixed() -> None:
    assert compressed_schemes.model_format([{"format": "int-quantized"}] * 2) == "int-quantized"


def test_layers_that_runtimes_fuse_must_share_a_choice(layers: dict[str, Layer]) -> None:
    names = [f"{BLOCK}.self_attn.{last}" for last in ("q_proj", "k_proj", "v_proj")]
    choices, fused = dict.fromkeys(names, "int8_dynamic"), [layers[name] for name in names]
    exporters.check(CompressedTensorsExporter(), source(choices, fused))
    with pytest.raises(ExportError, match=r"cannot express 1 of 3 layers") as caught:
        exporters.check(CompressedTensorsExporter(), source(choices | {names[2]: "fp32"}, fused))
    assert f"its runtimes fuse it with {names[0]}, which is int8_dynamic" in str(caught.value)
    assert "Formats that can: onnxruntime, torchao, torch-export, huggingface, neural-compressor, map" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("name", "shape", "choice", "reason"),
    [
        ("lm_head", (32, 64), "int8_dynamic", "output head"),
        ("proj", (32, 64), "bf16", "no bf16 layer"),
        ("proj", (32, 48), "int4_weight_only", "divisible by 32, but got 48"),
        ("proj", (32, 30), "int8_weight_only", "divisible by 4, but got 30"),
        ("proj", (32, 30), "int8_dynamic", None),
        ("layers.0.experts.3.up_proj", (32, 64), "int8_static", "experts"),
    ],
)
def test_what_vllm_cannot_read_is_refused(name: str, shape: tuple[int, int], choice: str, reason: str | None) -> None:
    layer = Layer(
        name=name, kind=LayerKind.LINEAR, weight_shape=shape, has_bias=False, weight_bytes=0, input_shape=(1, 4),
        flops=0, calls=1, order=0, group=name.replace(".3.", ".*."),
    )  # fmt: skip
    refusal = CompressedTensorsExporter().refuses(layer, choice_named(choice))
    assert refusal is None if reason is None else refusal is not None and reason in refusal
