"""Configurations for other libraries: their content, and what the real library makes of it where it is installed."""

import json
import re
import textwrap
from collections import OrderedDict
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from autotune import exporters
from autotune.errors import ExportError
from autotune.exporters.base import Source
from autotune.exporters.configurations.base import NOTE, Configuration
from autotune.maps.map_file import MapFile
from search_spaces.quantization_map import ActivationRange, QuantizationMap, SecondMoments

# A name that is the start of another one, as they are in blocks of more than ten layers.
CHOSEN = {
    "block.1": "int8_static",
    "block.10": "int8_dynamic",
    "gate": "int8_weight_only",
    "head": "int4_weight_only",
    "norm": "fp32",
}
MAP = QuantizationMap.from_names(CHOSEN, {"block.1": ActivationRange(low=-1.0, high=3.0)})
MOMENTS = SecondMoments(squares=(1.0,), scales=(), basis="")
WITH_GPTQ = QuantizationMap.from_names(
    CHOSEN | {"gate": "int4_weight_only_gptq"},
    dict.fromkeys(("block.1", "gate"), ActivationRange(low=-1.0, high=3.0, moments=MOMENTS)),
)
#: Format -> a word of its files that its library checks.
FORMATS = {"modelopt": "bits", "llm-compressor": "bits", "neural-compressor": "bits", "nncf": "preset"}


class _File(MapFile):
    """A map file of which a configuration reads the map only."""

    def quantization_map(self) -> QuantizationMap:
        return MAP


def configuration(name: str) -> Configuration:
    built = exporters.build_exporter(name)
    assert isinstance(built, Configuration)
    return built


def document(name: str) -> Any:
    return yaml.safe_load(configuration(name).text(MAP))


def write(name: str, folder: Path) -> dict[str, Any]:
    source = Source(file=_File.model_construct(), task=None, model=nn.Module(), layers=())  # type: ignore[arg-type]
    return dict(configuration(name).write(source, folder))


def test_modelopt_fixes_static_ranges_and_leaves_the_rest_alone() -> None:
    first, *entries = document("modelopt")["quant_cfg"]
    assert first == {"quantizer_name": "*", "enable": False}
    found = {entry["quantizer_name"]: entry["cfg"] for entry in entries}
    assert found["block.1.input_quantizer"] == {"num_bits": 8, "axis": None, "constant_amax": 3.0}
    assert found["block.10.input_quantizer"] == {"num_bits": 8, "axis": None, "type": "dynamic"}
    assert found["head.weight_quantizer"] == {"num_bits": 4, "block_sizes": {-1: 32}}
    assert set(found) == {
        "block.1.weight_quantizer", "block.1.input_quantizer", "block.10.weight_quantizer", "block.10.input_quantizer",
        "gate.weight_quantizer", "head.weight_quantizer",
    }  # fmt: skip


def test_recipe_has_a_group_for_each_choice() -> None:
    modifier = document("llm-compressor")["quant_stage"]["quant_modifiers"]["QuantizationModifier"]
    assert {name: group["targets"] for name, group in modifier["config_groups"].items()} == {
        choice: [layer] for layer, choice in CHOSEN.items() if choice != "fp32"
    }


def test_libraries_round_by_gptq_themselves() -> None:
    stage = yaml.safe_load(configuration("llm-compressor").text(WITH_GPTQ))["quant_stage"]["quant_modifiers"]
    assert list(stage["GPTQModifier"]["config_groups"]) == ["int4_weight_only_gptq"]
    assert stage["GPTQModifier"]["config_groups"]["int4_weight_only_gptq"]["targets"] == ["gate"]
    assert "gate" not in str(stage["QuantizationModifier"])
    sections = json.loads(configuration("neural-compressor").text(WITH_GPTQ))
    assert sections["gptq"]["local"]["gate$"]["bits"] == 4
    assert list(sections["rtn"]["local"]) == ["head$"]


def test_neural_compressor_names_match_whole_layers() -> None:
    sections = json.loads(configuration("neural-compressor").text(MAP))
    assert list(sections["static_quant"]["local"]) == [r"block\.1$"]
    assert sections["rtn"]["global"] == {"dtype": "fp32"}
    assert sections["rtn"]["local"]["head$"]["bits"] == 4


def test_neural_compressor_has_a_section_for_a_map_in_full_precision() -> None:
    everything = QuantizationMap.from_names(dict.fromkeys(MAP.choices, "fp32"), {})
    # A configuration of none is no configuration to its reader.
    assert json.loads(configuration("neural-compressor").text(everything)) == {
        "rtn": {"local": {}, "global": {"dtype": "fp32"}}
    }


def test_nncf_leaves_out_all_but_the_layers_of_a_choice() -> None:
    calls = json.loads(configuration("nncf").text(MAP))
    assert [call["mode"] for call in calls["compress_weights"]] == ["int8_sym", "int4_asym"]
    (scope,) = (call["ignored_scope"]["patterns"] for call in calls["quantize"])
    names = ("block.1", "block.10", "block.1.norm", "block01")
    operations = [f"__module.{name}/aten::linear/{kind}" for name in names for kind in ("MatMul", "Add")]
    # NNCF matches from the start of a name.
    kept = [operation for operation in operations if not re.match(scope[0], operation)]
    assert kept == ["__module.block.1/aten::linear/MatMul"]
    # A weight that a scope names is left out, whatever operation reads it.
    assert not re.match(scope[0], "self.block.1.weight")


def skip_without(*libraries: str) -> None:
    for library in libraries:
        try:
            metadata.version(library)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{library} is not installed; docs/export.md says how to run this test with it")


@pytest.mark.parametrize("name", FORMATS)
def test_library_accepts_it(name: str) -> None:
    written = configuration(name)
    skip_without(written.library)
    with exporters.libraries():
        written.validate(written.text(MAP))
        if "int4_weight_only_gptq" in written.choices:
            written.validate(written.text(WITH_GPTQ))
        with pytest.raises(Exception):  # noqa: B017, PT011 - each library has its own
            written.validate(written.text(MAP).replace(FORMATS[name], "bites"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("version", ["9.9", None])
def test_note_says_whether_the_library_accepted_it(
    name: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(library: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(library)
        return version

    monkeypatch.setattr(metadata, "version", installed)
    monkeypatch.setattr(type(configuration(name)), "validate", lambda self, text: None)
    assert write(name, tmp_path) == {"validated_with": version}
    note = (tmp_path / NOTE).read_text()
    expected = "9.9 accepted" if version else "was neither validated nor run"
    assert expected in note
    assert ("validated, not run" in note) == (version is not None)


def test_what_the_library_does_not_accept_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(self: Configuration, text: str) -> None:
        raise ValueError("no such field")

    monkeypatch.setattr(metadata, "version", lambda library: "9.9")
    monkeypatch.setattr(type(configuration("modelopt")), "validate", reject)
    with pytest.raises(ExportError, match=r"nvidia-modelopt 9\.9 does not accept the configuration: no such field"):
        write("modelopt", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_there_is_no_model_to_load(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="contains no model to load"):
        configuration(name).load(tmp_path, {}, nn.Module)


def test_nncf_run_as_the_note_shows_rounds_exactly_the_layers_of_the_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without("nncf", "openvino")
    monkeypatch.setenv("NNCF_CI", "1")  # else it would report what is called to its makers
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(
        OrderedDict(
            embed=nn.Embedding(64, 32),
            front=nn.Linear(32, 32),
            middle=nn.Sequential(nn.Conv1d(16, 32, 3), nn.ReLU(), nn.Conv1d(32, 16, 3)),
            back=nn.Linear(28, 32),
            **{str(number): nn.Linear(32, 32) for number in (1, 10)},
        )
    )  # fmt: skip
    chosen = {"embed": "int8_weight_only", "middle.2": "int8_static", "1": "int8_static", "10": "int4_weight_only"}
    ranges = dict.fromkeys(["middle.2", "1"], ActivationRange(low=-1.0, high=1.0))
    everything = dict.fromkeys(["embed", "front", "middle.0", "middle.2", "back", "1", "10"], "fp32")
    written = configuration("nncf")
    (tmp_path / written.file).write_text(written.text(QuantizationMap.from_names(everything | chosen, ranges)))
    batch = torch.arange(32).view(2, 16)
    names: dict[str, Any] = {"model": model, "batch": batch, "batches": [batch]}
    with exporters.libraries():
        exec(textwrap.dedent(written.usage), names)
    assert rounded(names["model"]) == chosen


def rounded(model: Any) -> dict[str, str]:
    """Layer -> its choice, as weights and inputs of an OpenVINO model tell it."""
    types = {"i8": "int8_weight_only", "u4": "int4_weight_only"}
    found = {}
    for operation in model.get_ordered_ops():
        inputs = [source_of(value.get_node()) for value in operation.input_values()]
        layer = re.match(r"__module\.(.+)/.+/(MatMul|Convolution|Gather)$", operation.get_friendly_name())
        for node in inputs if layer else ():
            if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in types:
                found[layer[1]] = types[node.get_element_type().get_type_name()]
        if layer and inputs[0].get_type_name() == "FakeQuantize":
            found[layer[1]] = "int8_static"
    return found


def source_of(node: Any) -> Any:
    """Return what a value is before it was scaled."""
    while node.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape"):
        node = node.input_value(0).get_node()
    return node
