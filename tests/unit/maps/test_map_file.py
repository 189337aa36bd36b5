"""Map files: they come back as they were written, say what is wrong with them, and fit one model only."""

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autotune import load_map
from autotune.errors import ConflictError, NotFoundError
from autotune.jobs.records import JobRecord, JobState, TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from autotune.maps.map_file import MapFile, dump, map_document, read, write
from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.errors import MapError
from search_spaces.quantization_map import ActivationRange, QuantizationMap, SecondMoments, Smoothing, map_key
from workers.backends.cpu.backend import CpuBackend
from workers.device.processor import this_processor
from workers.errors import BackendError
from workers.measurement import Environment
from workers.model.fingerprint import fingerprint
from workers.model.prepared import PreparedModel
from workers.setup import BackendDescription, Calibration, ModelDescription
from workers.timing.estimates import Figure

X = torch.tensor([[1, 2], [3, 4]])
#: Choices every x86 processor with AVX2 runs.
CHOSEN = {"words": "int8_weight_only", "block.0": "fp32", "head": "int8_weight_only"}
SMOOTHING = Smoothing(factors=tuple(0.125 * (channel + 1) for channel in range(32)), low=-2.0 / 3.0, high=3.0)
MOMENTS = SecondMoments(
    squares=(1.0, 1.0 / 3.0) * 16, scales=(0.01,), basis=base64.b64encode(bytes(range(32))).decode()
)
RANGES = {name: ActivationRange(low=-1.0 / 3.0, high=4.0, smoothing=SMOOTHING, moments=MOMENTS) for name in CHOSEN}
# The only layer whose bias is corrected.
RANGES["head"] = replace(RANGES["head"], means=tuple(float(channel) for channel in range(32)))
UNCALIBRATED = {"input_range": None, "input_means": None}
PLAIN = {"smoothing": None, "moments": None}
#: Choice -> what of a range its map lacks.
KEPT = {
    "fp8_static": PLAIN,
    "int8_static": PLAIN,
    "int8_static_smooth": {"moments": None},
    "int4_weight_only_gptq": {"smoothing": None},
}


class Model(nn.Module):
    """An embedding, a nested layer, and a layer that hangs in two places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(8, 32)
        self.block = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 32)
        self.alias = self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.alias(self.head(self.block(self.words(x))))
        return y


def job() -> JobRecord:
    model = Model()
    layers = discover(model, lambda m: m(X))
    description = ModelDescription(
        fingerprint=fingerprint(model), layers=layers, refusals={}, layer_bytes={}, other_bytes=0,
        calibration=Calibration(ranges=RANGES, samples=250, seconds=1.0),
        environment=Environment(hardware="cpu", backend="x86", threads=2, load=0.1, versions={}),
    )  # fmt: skip
    spec = JobSpec.parse({"name": "größe", "task": {"name": "t", "parameters": {"p": [1]}}, "search": {"seed": 7}})
    return JobRecord(
        id="j", name=spec.name, task="t", document=spec.dump(), state=JobState.FINISHED, created_at=now(),
        updated_at=now(), description=description,
    )  # fmt: skip


JOB = job()


def trial(choices: Mapping[str, str] = CHOSEN) -> TrialRecord:
    figures = {"accuracy": Figure(value=0.1 + 0.2), "latency_p50_ms": Figure(value=2.0, low=1.9, high=2.2)}
    return TrialRecord(
        job_id="j", number=3, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices=choices,
        key=map_key(choices), figures=figures, environment={"threads": 2}, finished_at=now(),
    )  # fmt: skip


def document(
    choices: Mapping[str, str] = CHOSEN, description: ModelDescription | None = None, **layer_changes: Any
) -> dict[str, Any]:
    data = map_document(replace(JOB, description=description or JOB.description), trial(choices))
    data["layers"]["head"] |= layer_changes
    return data


def saved(folder: Path, content: Mapping[str, Any] | str | bytes) -> Path:
    path = folder / "map.json"
    text = dump(content) if isinstance(content, Mapping) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(MapError) as caught:
        read(path)
    return str(caught.value)


def test_a_map_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "map.json"
    write(document(CHOSEN | {"head": "int8_static"}), path)
    file = read(path)
    assert dump(file.model_dump(mode="json", by_alias=True)) == path.read_text()
    assert [(name, layer.choice) for name, layer in file.layers.items()] == [
        ("words", "int8_weight_only"), ("block.0", "fp32"), ("head", "int8_static")
    ]  # fmt: skip
    assert file.ranges() == {"head": replace(RANGES["head"], smoothing=None, moments=None)}
    assert file.promised["accuracy"].value == 0.1 + 0.2
    assert (file.promised["latency_p50_ms"].low, file.promised["latency_p50_ms"].high) == (1.9, 2.2)
    assert (file.task, file.task_parameters, file.backend) == ("t", {"p": [1]}, "x86")
    assert (file.provenance.job, file.provenance.job_name, file.provenance.trial) == ("j", "größe", 3)
    assert (file.provenance.seed, file.provenance.calibration_samples) == (7, 250)


@given(st.fixed_dictionaries({name: st.sampled_from(sorted(CHOICES)) for name in CHOSEN}))
def test_any_map_survives_its_file(choices: dict[str, str]) -> None:
    found = MapFile.model_validate_json(dump(document(choices))).quantization_map()
    ranges = {name: known for name, choice in choices.items() if (known := kept(name, choice)) is not None}
    assert found == QuantizationMap.from_names(choices, ranges)


def kept(name: str, choice: str) -> ActivationRange | None:
    """What a map has of a layer's range."""
    means = RANGES[name].means if CHOICES[choice].rounds_to_nearest else None
    if means is None and choice not in KEPT:
        return None
    return replace(RANGES[name], **KEPT.get(choice, PLAIN), means=means)


@pytest.mark.parametrize(
    ("job", "trial"), [(replace(JOB, description=None), trial()), (JOB, replace(trial(), figures={}))]
)
def test_a_trial_without_figures_has_no_map(job: JobRecord, trial: TrialRecord) -> None:
    with pytest.raises(ConflictError, match="trial 3 of job j was never measured; pick another trial"):
        map_document(job, trial)


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = saved(tmp_path, "old")
    with pytest.raises(TypeError):
        write({"no JSON": object()}, path)
    assert path.read_text() == "old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(MapError, match=r"cannot write '.*folder': Is a directory"):
        write(document(), tmp_path / "folder")
    with pytest.raises(MapError, match=r"cannot write '.*map.json/x': "):
        write(document(), path / "x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "map.json"]
    with path.open() as reader:
        write(document(), path)
        assert reader.read() == "old"
    assert read(path).layers.keys() == CHOSEN.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"file: Invalid JSON: EOF .* column \d+"),
        (dump(document())[:-40], r"file: Invalid JSON: EOF .* column \d+"),
        (b"\xff\xfe\x00", r"file: Invalid JSON: .* column \d+"),
        ("[" * 5000, r"file: Invalid JSON: recursion limit .* column \d+"),
        ("[]", r"file: must be a mapping of keys to values"),
    ],
    ids=["empty", "truncated", "binary", "deep", "list"],
)
def test_a_file_that_is_no_map_is_refused_in_one_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    head, line = refusal(saved(tmp_path, text)).splitlines()
    assert head.endswith("map.json' is not a quantization map; export it again:")
    assert re.fullmatch("  " + expected, line)


def test_of_another_version_of_the_file_only_that_is_reported(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, {"schema": "autotune.map/v9", "groups": []}))
    assert message.splitlines()[1:] == ["  schema: must be 'autotune.map/v1', but got 'autotune.map/v9'"]


def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"cannot read the map {str(tmp_path)!r}: Is a directory"
    with pytest.raises(NotFoundError, match="there is no map file"):
        read(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"choice": "int8_statik"}, "layers.head: unknown choice 'int8_statik'; did you mean 'int8_static'?"),
        (
            {"choice": "int8_static"} | UNCALIBRATED,
            "layers.head: int8_static needs the calibrated input_range, but it has none",
        ),
        ({"input_range": [1, 2]}, "layers.head: an activation range must be finite with low <= 0 <= high, but got [1"),
        (
            {"choice": "int8_static_smooth", "input_range": [0, 1]},
            "layers.head: int8_static_smooth needs smoothing with 32 factors, but has none",
        ),
        (
            {"input_range": [0, 1], "smoothing": {"factors": [1, -2], "range": [0, 1]}},
            "layers.head: smoothing needs positive, finite factors, but got -2.0",
        ),
        (
            {"choice": "int4_weight_only_gptq", "input_range": [0, 1]},
            "layers.head: int4_weight_only_gptq needs moments of 32 channels, but has none",
        ),
        (
            {"input_range": [0, 1], "moments": {"squares": [1], "scales": [1], "basis": "AAA="}},
            "layers.head: the basis of second moments needs 1 bytes for 1 scales and 1 channels, but has 2",
        ),
        (
            {"input_means": [1.0] * 31},
            "input_means must contain one mean per input channel of a linear or convolutional layer with an "
            "input_range, but got 31 for a linear of shape [32, 32]",
        ),
        ({"input_means": [1.0] * 64}, "but got 64 for a linear of shape [32, 32]"),
        ({"input_range": None}, "but got 32 for a linear of shape [32, 32]"),
        ({"kind": "conv2d", "input_means": [1.0] * 96}, "but got 96 for a conv2d of shape [32, 32]"),
        ({"kind": "lstm"}, "but got 32 for a lstm of shape [32, 32]"),
        ({"input_means": [math.inf] * 32}, "layers.head: means of input channels must be finite, but got inf"),
        ({"input_range": [1]}, "layers.head.input_range.1: is required"),
        ({"kind": "cell"}, "'lstm' or 'gru', but got 'cell'"),
        ({"weight_shape": "x" * 999}, "layers.head.weight_shape: must be a valid array, but got 'xxxx"),
        ({"chioce": 1}, "layers.head.chioce: unknown key"),
    ],
)
def test_an_error_says_the_rule_and_the_value(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    message = refusal(saved(tmp_path, document(**changes)))
    assert expected in message
    assert max(map(len, message.splitlines())) < 300


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    data = document(choice="int9") | {"model_fingerprint": "5E", "promised": {"accuracy": {}}}
    del data["task"]
    message = refusal(saved(tmp_path, data))
    for part in ("task: is", "layers.head: unknown choice", "model_fingerprint: must match", "promised.accuracy.value"):
        assert f"\n  {part}" in message


def test_an_applied_map_is_what_the_search_measured(tmp_path: Path) -> None:
    measured, model = Model().eval(), Model()
    PreparedModel(measured, discover(measured, lambda m: m(X)), CpuBackend(), RANGES).apply(CHOSEN)
    linear = model.block[0]
    applied = load_map(saved(tmp_path, document())).apply(model)
    assert applied is model
    assert not applied.training
    assert applied.block[0] is linear
    assert applied.alias is applied.head
    with torch.no_grad():
        assert torch.equal(applied(X), measured(X))
        assert not torch.equal(applied(X), Model()(X))


def test_a_model_that_is_one_layer_stays_as_it_is(tmp_path: Path) -> None:
    model = nn.Linear(32, 32)
    data = document() | {"model_fingerprint": fingerprint(model)}
    data["layers"] = {"": data["layers"]["block.0"]}
    assert list(load_map(saved(tmp_path, data)).apply(model).modules()) == [model]


def renamed(model: Model) -> None:
    model.tail = model.block
    del model.block


def reshaped(model: Model) -> None:
    model.block[0] = nn.Linear(32, 16)


def of_another_kind(model: Model) -> None:
    model.block[0] = nn.Embedding(32, 32)


def trained(model: Model) -> None:
    with torch.no_grad():
        model.head.bias[0] += 1e-6


def quantized(model: Model) -> None:
    PreparedModel(model, discover(model, lambda m: m(X)), CpuBackend(), RANGES).apply(CHOSEN)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (renamed, "no layer 'block.0' to quantize; apply it once, to the full-precision model of task 't'"),
        (reshaped, r"'block.0' is linear with weight shape \(16, 32\), but the map was made for linear with \(32, 32"),
        (of_another_kind, r"'block.0' is embedding with .* made for linear"),
        (trained, "other weights: .* the fingerprints differ; .* run a new job"),
        (quantized, "no layer 'words' to quantize; apply it once"),
    ],
)
def test_another_model_is_refused_and_left_alone(
    tmp_path: Path, change: Callable[[Model], None], expected: str
) -> None:
    model = Model()
    change(model)
    before = list(model.modules())
    with pytest.raises(MapError, match=expected):
        load_map(saved(tmp_path, document())).apply(model)
    assert list(model.modules()) == before


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("bf16", "'head' cannot take bf16: needs AVX512-BF16"),
        ("fp8_static", "'head' cannot take fp8_static: no CPU kernel computes fp8_static linear layers"),
    ],
)
def test_what_this_processor_cannot_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    model = Model()
    before = list(model.modules())
    with pytest.raises(MapError, match=expected):
        load_map(saved(tmp_path, document(CHOSEN | {"head": choice}))).apply(model)
    assert list(model.modules()) == before


@pytest.mark.parametrize("bits", [7, 8])
def test_integers_of_a_map_are_those_of_the_processor_it_was_made_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    own = Model().eval()
    chosen = CHOSEN | {"head": "int8_static"}
    prepared = PreparedModel(
        own, discover(own, lambda m: m(X)), CpuBackend(), RANGES, weight_bits=dict.fromkeys(CHOSEN, bits)
    )
    prepared.apply(chosen)
    made = document(chosen)
    made["layers"]["head"]["weight_bits"] = bits
    for features in ({}, {"avx2": True}, {"avx2": True, "avx512_vnni": True}):
        if features:
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        applied = load_map(saved(tmp_path, made)).apply(Model())
        with torch.inference_mode():
            torch.testing.assert_close(applied(X), own(X), rtol=1e-5, atol=1e-5)


def test_a_map_has_bits_and_shapes_of_its_layers() -> None:
    described = job().description
    assert described is not None
    layers = tuple(replace(layer, latency_shapes=((1, 2), (1, 1))) for layer in described.layers)
    made = document(CHOSEN | {"head": "int8_dynamic"}, replace(described, layers=layers, weight_bits={"head": 7}))
    file = MapFile.model_validate(made)
    assert file.layers["head"].latency_shapes == ((1, 2), (1, 1))
    assert file.weight_bits() == {"words": 8, "block.0": 8, "head": 7}
    assert file.quantization_map().choices["head"].weight_bits == 7


def test_a_map_has_the_kernels_that_were_measured(tmp_path: Path) -> None:
    described = job().description
    assert described is not None
    kernels = {"head": {"int8_dynamic": "fp32", "int8_static": "onednn"}}
    here = this_processor().kind
    made = document(CHOSEN | {"head": "int8_dynamic"}, replace(described, kernels=kernels))
    made["provenance"]["environment"]["kind"] = here
    file = MapFile.model_validate(made)
    assert file.kernels(here) == {"head": {"int8_dynamic": "fp32"}}
    assert file.kernels("another processor") == {}
    applied = load_map(saved(tmp_path, made)).apply(Model())
    assert applied.head.kernel == "fp32"


@pytest.mark.parametrize("choice", ["int8_static_smooth", "int4_weight_only_gptq"])
def test_a_layer_of_a_calibrated_method_is_rebuilt_from_the_file_alone(tmp_path: Path, choice: str) -> None:
    write(document(CHOSEN | {"head": choice}), tmp_path / "map.json")
    own = Model().eval()
    bits = dict.fromkeys(CHOSEN, 8)
    prepared = PreparedModel(own, discover(own, lambda m: m(X)), CpuBackend(), RANGES, weight_bits=bits)
    prepared.apply(CHOSEN | {"head": choice})
    with torch.inference_mode():
        assert torch.equal(load_map(tmp_path / "map.json").apply(Model())(X), own(X))


def test_an_unknown_backend_names_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="unknown backend 'cpi'; did you mean 'cpu'"):
        load_map(saved(tmp_path, json.dumps(document() | {"backend": "cpi"}))).apply(Model())


SCHEMA = Path(__file__).parents[3] / "docs" / "schemas" / "map-v1.json"


def test_published_schema_is_the_one_that_is_read_by() -> None:
    published = json.loads(SCHEMA.read_text())
    assert published == MapFile.model_json_schema(by_alias=True), f"write it again: {SCHEMA}"
    jsonschema.validate(document(), published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document() | {"schema": "autotune.map/v2"}, published)


def test_a_map_of_another_backend_names_it_and_its_reference() -> None:
    described = job().description
    assert described is not None
    assert MapFile.model_validate(document(CHOSEN, described)).reference == described.environment.backend
    other = BackendDescription(
        refusals={},
        layer_bytes={},
        other_bytes=0,
        environment=replace(described.environment, backend="onnxruntime"),
        weight_bits={"head": 7},
    )
    chosen = CHOSEN | {"head": "int8_dynamic"}
    on_two = replace(JOB, description=replace(described, others={"onnxruntime": other}))
    file = MapFile.model_validate(map_document(on_two, replace(trial(chosen), backend="onnxruntime")))
    assert (file.backend, file.reference) == ("onnxruntime", described.environment.backend)
    assert file.weight_bits()["head"] == 7
