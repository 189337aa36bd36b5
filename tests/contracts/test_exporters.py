"""What every exporter promises, over every choice, on an encoder, a CNN and a decoder."""

import functools
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from autotune import exporters
from autotune.errors import ConflictError, ExportError
from autotune.exporters.base import Exporter, Source
from autotune.exporters.configurations.base import Configuration
from autotune.exporters.export import export, read_source
from autotune.exporters.manifest import Manifest
from autotune.maps import map_file
from autotune.maps.map_file import MapFile
from search_spaces.choice import CHOICES, FULL_PRECISION, choice_named
from search_spaces.discovery import discover
from search_spaces.errors import MapError
from search_spaces.fusion import fusion_group
from search_spaces.layer import LayerKind
from workers.backends import build_backend
from workers.backends.cpu.backend import CpuBackend
from workers.backends.rounding.bias_correction import has_correction
from workers.device.processor import this_processor
from workers.model.prepared import PreparedModel
from workers.quality import outputs
from workers.task import Split
from workers.tasks import build_task, load_task_file

DATA = Path(__file__).parents[1] / "data"
TASK_FILE = str(DATA / "export_tasks.py")
#: Largest relative difference of outputs from our backend's: the same integers, products in another precision.
ROUNDING = 0.01
#: What a format rounds anew, by its own documentation: such outputs may differ from the backend's by as much as two
#: roundings of the same fineness do, twice what ours differ from full precision.
ROUNDED_AGAIN = {
    "compressed-tensors": {"int8_dynamic", "int8_dynamic_per_token", "int4_weight_only", "int4_weight_only_gptq"},
    **{name: {"int8_dynamic_per_token"} for name in ("torchao", "torch-export", "huggingface")},
}
#: Formats that trace a model for seconds, so that the mixed map stands for every choice.
TRACED = {"torch-export"}
TASKS = ("tiny-bert", "tiny-cnn", "tiny-llama")
load_task_file(TASK_FILE)
maps = SimpleNamespace(**runpy.run_path(str(DATA / "export_maps.py")))
recovered_maps = SimpleNamespace(**runpy.run_path(str(DATA / "recovered_maps.py")))


@functools.cache
def source(task_name: str) -> Source:
    return read_source(MapFile.model_validate(maps.blank(task_name)))


def expressible(exporter: Exporter, task_name: str, choice: str) -> dict[str, str]:
    """The map that gives the choice to every fusion group that may take it in the format and on the backend."""
    backend, wanted = CpuBackend(), choice_named(choice).with_weight_bits(this_processor().int8_weight_bits)
    refused = {
        fusion_group(layer.name)
        for layer in source(task_name).layers
        if exporter.refuses(layer, wanted) or backend.refuses(layer, wanted)
    }
    return {layer.name: choice for layer in source(task_name).layers if fusion_group(layer.name) not in refused}


@pytest.fixture(params=exporters.exporter_names())
def exporter(request: pytest.FixtureRequest) -> Exporter:
    return exporters.build_exporter(request.param)


@pytest.fixture
def runnable(exporter: Exporter) -> Exporter:
    """An exporter whose artefact is a model, not a configuration to make one by."""
    if isinstance(exporter, Configuration):
        pytest.skip("the format holds no model")
    return exporter


@pytest.fixture
def quick(runnable: Exporter) -> Exporter:
    """A runnable exporter that writes many maps in little time."""
    if runnable.name in TRACED:
        pytest.skip("the mixed map stands for the others")
    return runnable


@pytest.fixture
def quick_task(exporter: Exporter) -> str:
    """The task whose model the format writes fastest."""
    return next(name for name in ("tiny-cnn", "tiny-bert") if not exporter.refuses_model(source(name).model))


@pytest.fixture(params=TASKS)
def task_name(exporter: Exporter, request: pytest.FixtureRequest) -> str:
    if exporter.refuses_model(source(request.param).model):
        pytest.skip("the format does not hold this kind of model")
    return str(request.param)


def native_outputs(file: MapFile) -> torch.Tensor:
    """Outputs of our own backend on the evaluation data."""
    own = source(file.task) if file.recovery is None else read_source(file)
    prepared = PreparedModel(own.build_model(), own.layers, CpuBackend(), file.ranges(), weight_bits=file.weight_bits())
    prepared.apply(file.quantization_map().names)
    return outputs(own.task, prepared.model, Split.EVALUATION)


def assert_equal_within_rounding(
    exporter: Exporter, document: Mapping[str, Any], folder: Path, *, roundings: float = 1.0
) -> None:
    """Check outputs of the loaded artefact against our own backend's, on the evaluation data."""
    file = map_file.read(folder / "map.json")
    assert map_file.dump(document) == (folder / "map.json").read_text()
    manifest = Manifest.read(folder)
    task = build_task(file.task, file.task_parameters)
    own = source(file.task) if file.recovery is None else read_source(file)
    loaded = exporter.load(folder, manifest.details, own.build_model)
    actual, expected = outputs(task, loaded, Split.EVALUATION), native_outputs(file)
    assert actual.shape == expected.shape
    error, limit = float((actual - expected).norm() / expected.norm()), roundings * ROUNDING
    if ROUNDED_AGAIN.get(exporter.name, set()) & set(file.quantization_map().names.values()):
        full = outputs(task, task.build_model(), Split.EVALUATION)
        limit = 2.0 * float((full - expected).norm() / expected.norm())
    print(exporter.name, file.task, f"{error:.2e}")
    assert error < limit


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph before its layers take their places depends on the task alone; tracing it takes most of an export."""
    from workers.backends.onnx import graph

    trace, kept = graph.trace, _traced

    def once(task: Any, *arguments: Any, **named: Any) -> Any:
        key = type(task).__name__, *named.values()
        kept[key] = kept.get(key) or trace(task, *arguments, **named)
        return kept[key]

    monkeypatch.setattr(graph, "trace", once)


_traced: dict[tuple[Any, ...], Any] = {}


@pytest.mark.parametrize("choice", CHOICES)
def test_export_computes_what_the_backend_computes(
    quick: Exporter, task_name: str, choice: str, traced_once: None, tmp_path: Path
) -> None:
    choices = expressible(quick, task_name, choice)
    if not choices:
        pytest.skip("the format or the backend cannot express it")
    document = maps.with_choices(task_name, choices)
    export(document, quick.name, tmp_path / "out")
    assert_equal_within_rounding(quick, document, tmp_path / "out")


@pytest.mark.parametrize("choice", ["int8_weight_only", "int8_static"])
def test_exports_have_corrected_biases(
    quick: Exporter, task_name: str, choice: str, traced_once: None, tmp_path: Path
) -> None:
    full, choices = source(task_name), expressible(quick, task_name, choice)
    correctable = [layer for layer in full.layers if layer.name in choices and has_correction(layer)]
    if not correctable:
        pytest.skip("no such layer has a bias")
    document = maps.with_choices(task_name, choices)
    for layer in correctable:
        module = full.model.get_submodule(layer.name)
        channels = layer.weight_shape[1] * getattr(module, "groups", 1)
        document["layers"][layer.name]["input_means"] = [20.0] * channels  # enough to be told from rounding
    export(document, quick.name, tmp_path / "out")
    assert_equal_within_rounding(quick, document, tmp_path / "out")


@functools.cache
def able_choices(format_name: str, task_name: str) -> Mapping[str, list[str]]:
    """Layer -> the choices that its fusion group may take in the format and on the backend."""
    exporter = exporters.build_exporter(format_name)
    by_choice = {choice: expressible(exporter, task_name, choice) for choice in CHOICES}
    return {
        layer.name: [choice for choice, layers in by_choice.items() if layer.name in layers]
        for layer in source(task_name).layers
    }


def mixed(exporter: Exporter, task_name: str) -> dict[str, str]:
    """A map that gives neighbouring fusion groups different choices, all that the format and the backend take."""
    able = able_choices(exporter.name, task_name)
    groups = list(dict.fromkeys(fusion_group(layer) for layer in able))
    return {layer: names[groups.index(fusion_group(layer)) % len(names)] for layer, names in able.items()}


def test_mixed_map_is_exported_again_byte_for_byte(exporter: Exporter, task_name: str, tmp_path: Path) -> None:
    document = maps.with_choices(task_name, mixed(exporter, task_name))
    first = export(document, exporter.name, tmp_path / "first")
    assert first == Manifest.read(tmp_path / "first")
    if exporter.name not in TRACED or task_name == "tiny-cnn":
        assert first == export(document, exporter.name, tmp_path / "second")
    if not isinstance(exporter, Configuration):
        assert_equal_within_rounding(exporter, document, tmp_path / "first")
    assert MapFile.model_validate_json((tmp_path / "first" / "map.json").read_bytes()).quantization_map().names == {
        layer.name: document["layers"][layer.name]["choice"] for layer in source(task_name).layers
    }


def recovered(task_name: str, choices: Mapping[str, str]) -> tuple[dict[str, Any], bytes]:
    """A recovered map, and the content of its sidecar."""
    document = maps.with_choices(task_name, choices)
    return recovered_maps.recovered(document, source(task_name).build_model())  # type: ignore[no-any-return]


def test_recovered_map_is_exported_with_its_learned_weights(
    runnable: Exporter, task_name: str, traced_once: None, tmp_path: Path
) -> None:
    if runnable.name in TRACED and task_name != "tiny-cnn":
        pytest.skip("one model stands for the others")
    chosen = mixed(runnable, task_name)
    chosen = {layer: "fp32" if choice in runnable.rounds_anew else choice for layer, choice in chosen.items()}
    document, learned = recovered(task_name, chosen)
    manifest = export(document, runnable.name, tmp_path / "out", learned=learned)
    sidecar = document["recovery"]["sidecar"]
    assert manifest.files[sidecar["file"]].sha256 == sidecar["sha256"]
    assert Path(tmp_path, "out", sidecar["file"]).read_bytes() == learned
    assert_equal_within_rounding(runnable, document, tmp_path / "out")
    # The parent's outputs are further away than any rounding.
    loaded = runnable.load(tmp_path / "out", manifest.details, source(task_name).build_model)
    actual = outputs(source(task_name).task, loaded, Split.EVALUATION)
    parent = native_outputs(MapFile.model_validate(maps.with_choices(task_name, chosen)))
    assert float((actual - parent).norm() / parent.norm()) > 2.0 * ROUNDING


def test_formats_that_round_again_refuse_learned_weights(exporter: Exporter, tmp_path: Path) -> None:
    if not exporter.rounds_anew:
        pytest.skip("the format keeps integers")
    for choice in exporter.rounds_anew:
        choices = expressible(exporter, "tiny-bert", choice)
        document, learned = recovered("tiny-bert", choices)
        if not document["recovery"]["layers"]:
            continue
        with pytest.raises(ExportError) as caught:
            export(document, exporter.name, tmp_path / "out", learned=learned)
        first = document["recovery"]["layers"][0]
        assert (
            f"  {first}: {choice}: the format rounds such weights on a grid of its own, which would lose what recovery "
            "learned; export trial 1, which was not recovered"
        ) in str(caught.value)
        assert "torchao" in str(caught.value).splitlines()[0]
        assert list(tmp_path.iterdir()) == []


def test_an_export_of_a_recovered_map_needs_its_learned_weights(exporter: Exporter, tmp_path: Path) -> None:
    document, learned = recovered("tiny-bert", {"encoder.layer.0.output.dense": "int8_weight_only"})
    for wrong in (b"", learned[:-1]):
        with pytest.raises(MapError, match=f"the learned weights of this map have {len(learned)} bytes"):
            export(document, exporter.name, tmp_path / "out", learned=wrong)


def test_a_fresh_process_computes_what_was_learned_bit_for_bit(tmp_path: Path) -> None:
    exporter = exporters.build_exporter("onnxruntime")
    backend, layers = build_backend("onnxruntime"), {layer.name: layer for layer in source("tiny-bert").layers}
    chosen = {
        name: "fp32" if backend.refuses(layers[name], choice_named(choice)) else choice
        for name, choice in mixed(exporter, "tiny-bert").items()
    }
    assert len(set(chosen.values())) > 3
    document, learned = recovered("tiny-bert", chosen)
    document["backend"] = "onnxruntime"
    map_file.write(document, tmp_path / "map.json", learned)
    manifest = export(document, "onnxruntime", tmp_path / "out", learned=learned)
    exported = exporter.load(tmp_path / "out", manifest.details, source("tiny-bert").build_model)
    code = (
        "import sys; from safetensors.torch import save_file\n"
        "from autotune.exporters.export import read_source; from autotune.maps import map_file\n"
        "from workers.quality import outputs; from workers.task import Split\n"
        "file = map_file.read(sys.argv[1]); own = read_source(file, task_file=sys.argv[2])\n"
        "task, deployed = own.deployed(); deployed.apply(file.quantization_map().names)\n"
        "save_file({'out': outputs(task, deployed.model, Split.EVALUATION).contiguous()}, sys.argv[3])"
    )
    result = tmp_path / "result.safetensors"
    subprocess.run([sys.executable, "-c", code, tmp_path / "map.json", TASK_FILE, result], check=True)
    assert torch.equal(load_file(result)["out"], outputs(source("tiny-bert").task, exported, Split.EVALUATION))


@pytest.fixture
def as_built(exporter: Exporter) -> Exporter:
    """An exporter for the model as its task builds it, in which PyTorch's own attention calls no layers."""
    if not exporter.as_built:
        pytest.skip("the format holds unrolled attention")
    return exporter


def test_attention_in_full_precision_stays_as_the_model_has_it(as_built: Exporter, tmp_path: Path) -> None:
    # Not weight-only where another one will do: compressed-tensors packs it, which transformers cannot load here.
    offers = (expressible(as_built, "tiny-siglip", choice) for choice in ("int8_dynamic", "int8_weight_only"))
    choices = next(filter(None, offers))
    unrolled = dict.fromkeys(source("tiny-siglip").unrolled, "fp32")
    assert choices.keys() > unrolled.keys()
    document = maps.with_choices("tiny-siglip", choices | unrolled)
    export(document, as_built.name, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        # The output projection is a module of the model itself.
        assert (b"head.attention.q_proj" in path.read_bytes()) == (path.name == "map.json"), path.name
    if not isinstance(as_built, Configuration):
        assert_equal_within_rounding(as_built, document, tmp_path / "out")


@pytest.mark.parametrize(
    ("task_name", "layer"),
    [("tiny-siglip", "head.attention.out_proj"), ("tiny-transformer", "encoder.layers.1.linear2")],
)
def test_layers_that_only_unrolled_attention_calls_are_refused(
    as_built: Exporter, task_name: str, layer: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        export(maps.with_choices(task_name, {layer: "int8_weight_only"}), as_built.name, tmp_path / "out")
    assert f"  {layer}: int8_weight_only: the format keeps nn.MultiheadAttention fused" in str(caught.value)
    assert (
        str(caught.value)
        .splitlines()[0]
        .endswith("Formats that can: onnxruntime, openvino, torchao, torch-export, map")
    )


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # smaller maps are not simpler ones
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_map_is_loaded_as_it_was_exported(
    quick: Exporter, task_name: str, traced_once: None, data: st.DataObject
) -> None:
    drawn: dict[str, str] = {}
    choices = {}
    for layer, able in able_choices(quick.name, task_name).items():
        group = fusion_group(layer)
        if group not in drawn:
            drawn[group] = data.draw(st.sampled_from(able), label=group)
        choices[layer] = drawn[group]
    document = maps.with_choices(task_name, choices)
    with tempfile.TemporaryDirectory() as scratch:
        export(document, quick.name, Path(scratch, "out"))
        # Neighbours in bf16 and in int8 add their roundings up.
        assert_equal_within_rounding(quick, document, Path(scratch, "out"), roundings=2.0)


def test_refusals_are_sentences_and_full_precision_is_never_refused(exporter: Exporter, task_name: str) -> None:
    for layer in source(task_name).layers:
        assert exporter.refuses(layer, FULL_PRECISION) is None
        reasons = (exporter.refuses(layer, choice) for choice in CHOICES.values())
        assert all(reason is None or len(reason.split()) >= 4 for reason in reasons)


@pytest.mark.parametrize("build", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_refused_by_every_format(exporter: Exporter, build: type[nn.Module]) -> None:
    (layer,) = discover(nn.Sequential(build(16, 16)).eval(), lambda model: model(torch.zeros(2, 3, 16)))
    assert [name for name, choice in CHOICES.items() if exporter.refuses(layer, choice) is None] == ["fp32"]


def test_what_a_format_cannot_express_is_refused_before_anything_is_written(exporter: Exporter, tmp_path: Path) -> None:
    names = [layer.name for layer in source("tiny-bert").layers if layer.kind is LayerKind.LINEAR]
    document = maps.with_choices("tiny-bert", dict.fromkeys(names, "fp8_static"))
    with pytest.raises(ExportError, match=r"Formats that can: map\n") as caught:
        export(document, exporter.name, tmp_path / "out")
    assert f"cannot express {len(names)} of {len(source('tiny-bert').layers)} layers" in str(caught.value)
    assert f"  {names[0]}: fp8_static: " in str(caught.value)
    assert f"... and {len(names) - 5} more" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_nothing_behind_and_the_earlier_export_as_it_was(
    exporter: Exporter, quick_task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = maps.with_choices(quick_task, {})
    before = export(document, exporter.name, tmp_path / "out")

    def fail(self: Exporter, source: Source, folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("written")
        raise ExportError("no room")

    monkeypatch.setattr(type(exporter), "write", fail)
    for name in ("out", "new"):
        with pytest.raises(ExportError, match="no room"):
            export(document, exporter.name, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Manifest.read(tmp_path / "out") == before


def test_a_folder_of_something_else_is_never_replaced(exporter: Exporter, quick_task: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConflictError, match="exists but is not an export"):
        export(maps.with_choices(quick_task, {}), exporter.name, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_another_model_is_refused(exporter: Exporter, quick_task: str, tmp_path: Path) -> None:
    document = maps.with_choices(quick_task, {}) | {"model_fingerprint": "0" * 64}
    with pytest.raises(ExportError, match="now builds a model with different weights"):
        export(document, exporter.name, tmp_path / "out")


def test_damage_is_noticed(exporter: Exporter, quick_task: str, tmp_path: Path) -> None:
    manifest = export(maps.with_choices(quick_task, {}), exporter.name, tmp_path / "out")
    largest = tmp_path / "out" / max(manifest.files, key=lambda name: manifest.files[name].bytes)
    largest.write_bytes(largest.read_bytes()[:-1] + b"?")
    with pytest.raises(ExportError, match="missing or was changed after the export; export again"):
        Manifest.read(tmp_path / "out")
    with pytest.raises(ExportError, match=r"is not an export: cannot read export\.json"):
        Manifest.read(tmp_path)


def test_missing_library_says_what_to_install(exporter: Exporter) -> None:
    with (
        pytest.raises(ExportError, match=r"needs the package 'onyx', .* pip install 'quant-autotune\[export\]'"),
        exporters.libraries(),
    ):
        raise ModuleNotFoundError(name="onyx")


def test_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ExportError, match="unknown format 'onnxruntim'; did you mean 'onnxruntime'"):
        exporters.build_exporter("onnxruntim")


def test_model_of_another_library_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"huggingface needs a model of transformers, .* a Sequential") as caught:
        export(maps.with_choices("tiny-cnn", {}), "huggingface", tmp_path / "out")
    assert (
        "Formats that can: onnxruntime, openvino, torchao, torch-export, modelopt, neural-compressor, nncf, map"
        in str(caught.value)
    )
    assert list(tmp_path.iterdir()) == []
