"""Map files: they come back as they were written, say what is wrong with them, and fit one model only."""

import base64
import json
import math
import re
import runpy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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
from workers.recovered import RecoveryReport, RecoverySettings, digest
from workers.recovery.learned import install
from workers.setup import BackendDescription, Calibration, ModelDescription
from workers.timing.estimates import Figure

recovered_maps = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "data" / "recovered_maps.py")))

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


def recovered(head: str = "int8_weight_only", **changes: Any) -> tuple[dict[str, Any], bytes]:
    """A map of the head's learned weights, and the content of its sidecar."""
    return recovered_maps.recovered(document(CHOSEN | {"head": head}, **changes), Model())


def test_a_recovered_trial_has_a_map_with_a_sidecar(tmp_path: Path) -> None:
    report = RecoveryReport(
        method="blocks", settings=RecoverySettings(), seconds=1 / 3, samples=48, validation_samples=16, before=0.2,
        after=0.1, layers=("head",), kept={}, sha256=digest(b"learned"), nbytes=7,
    )  # fmt: skip
    chosen = CHOSEN | {"head": "int8_static"}
    of_trial = replace(trial(chosen), kind=TrialKind.RECOVERED, parent=2, recovery=report)
    path, made = tmp_path / "new" / "best.json", map_document(JOB, of_trial)
    write(made, path, b"learned")
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "best.json",
        f"map-{digest(b'learned')[:12]}.safetensors",
    ]
    file = read(path)
    assert file.learned == b"learned"
    assert dump(file.model_dump(mode="json", by_alias=True)) == path.read_text() == dump(made)
    assert made["recovery"] == {
        "parent": 2, "method": "blocks", "seconds": 1 / 3, "samples": 48,
        "validation": {"samples": 16, "before": 0.2, "after": 0.1}, "layers": ["head"],
        "sidecar": {
            "file": f"map-{digest(b'learned')[:12]}.safetensors", "sha256": digest(b"learned"), "bytes": 7
        },
    }  # fmt: skip
    # What was learned includes the bias.
    assert file.ranges()["head"].means is None
    assert document(chosen)["layers"]["head"]["input_means"] is not None


def test_a_map_that_was_not_recovered_lacks_the_key() -> None:
    assert "recovery" not in document()


@pytest.mark.parametrize("content", [b"", b"learneD", b"learned?"])
def test_a_recovered_map_is_not_written_without_its_weights(tmp_path: Path, content: bytes) -> None:
    made, _ = recovered()
    with pytest.raises(MapError, match=rf"have {len(content)} and {digest(content)}; export the map again"):
        write(made, tmp_path / "map.json", content)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MapError, match=r"its learned weights are in 'map-.*; read them with it"):
        _ = MapFile.model_validate(made).learned


def test_a_recovered_map_needs_its_sidecar(tmp_path: Path) -> None:
    made, content = recovered()
    path, sidecar = tmp_path / "map.json", tmp_path / made["recovery"]["sidecar"]["file"]
    write(made, path, content)
    for changed in (content[:-1], content[:-1] + b"!"):
        sidecar.write_bytes(changed)
        with pytest.raises(MapError, match=rf"'.*{sidecar.name}' does not belong to '.*map.json': .*{digest(changed)}"):
            load_map(path)
    sidecar.unlink()
    with pytest.raises(NotFoundError, match=rf"should be beside it, but there is no '.*{sidecar.name}'; copy both"):
        load_map(path)
    sidecar.mkdir()
    with pytest.raises(MapError, match=r"cannot read the learned weights .*: Is a directory"):
        load_map(path)


@pytest.mark.parametrize("choice", ["int8_weight_only", "int8_static", "int8_static_smooth", "int4_weight_only_gptq"])
def test_an_applied_recovered_map_has_its_learned_weights(tmp_path: Path, choice: str) -> None:
    made, content = recovered(choice, weight_bits=8)
    write(made, tmp_path / "map.json", content)
    native = load_map(tmp_path / "map.json")
    own, plain = Model().eval(), Model().eval()
    quantization = native.file.quantization_map()
    install(own, quantization, recovered_maps.moved(Model(), quantization))
    chosen = CHOSEN | {"head": choice}
    for model in (own, plain):
        bits = dict.fromkeys(CHOSEN, 8)
        layers = discover(model, lambda m: m(X))
        PreparedModel(model, layers, CpuBackend(), quantization.ranges, weight_bits=bits).apply(chosen)
    model = Model()
    words = model.words
    applied = native.apply(model)
    assert applied is model
    assert applied.alias is applied.head
    with torch.inference_mode():
        assert torch.equal(applied(X), own(X))
        assert not torch.allclose(applied(X), plain(X), atol=1e-3)
    assert applied.words is not words


def test_learned_weights_of_another_model_leave_this_one_alone(tmp_path: Path) -> None:
    made, _ = recovered()
    wrong = torch.nn.Linear(16, 32)
    other = {"head": recovered_maps.LearnedLayer(steps=torch.zeros(32, 16, dtype=torch.int8), bias=wrong.bias.detach())}
    for learned, message in (
        (other, r"'head' has weights of shape \(32, 32\), but the learned ones have \(32, 16\)"),
        ({"tail": other["head"]}, "name different layers, 'head' among them; export the map again"),
        ({}, "name different layers, 'head' among them"),
    ):
        content = recovered_maps.encoded(learned)
        sidecar = made["recovery"]["sidecar"] | {"sha256": digest(content), "bytes": len(content)}
        write(made | {"recovery": made["recovery"] | {"sidecar": sidecar}}, tmp_path / "map.json", content)
        model = Model()
        before = list(model.modules())
        with pytest.raises(MapError, match=message):
            load_map(tmp_path / "map.json").apply(model)
        assert list(model.modules()) == before


def test_learned_weights_that_this_processor_cannot_run_leave_the_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, content = recovered("int8_static", weight_bits=8)
    made["layers"]["block.0"]["choice"] = "bf16"
    write(made, tmp_path / "map.json", content)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    model = Model()
    before = list(model.modules())
    with pytest.raises(MapError, match=r"'block\.0' cannot take bf16"):
        load_map(tmp_path / "map.json").apply(model)
    assert list(model.modules()) == before
    assert model.alias is model.head


@pytest.mark.parametrize(
    ("layers", "of_layer", "message"),
    [
        (["tail"], {}, "the recovered layer 'tail' is not among the layers"),
        (
            ["words"],
            {},
            "convolutional with integer weights, but 'words' is embedding in int8_weight_only",
        ),
        (["block.0"], {}, "with integer weights, but 'block.0' is linear in fp32"),
        (
            ["head"],
            {"input_range": [-1.0, 1.0], "input_means": [1.0] * 32},
            "'head' is learned; it must have no input_m",
        ),
    ],
)
def test_a_wrong_recovery_is_told(tmp_path: Path, layers: list[str], of_layer: dict[str, Any], message: str) -> None:
    made, _ = recovered()
    made["layers"]["head"] |= of_layer
    assert message in refusal(saved(tmp_path, made | {"recovery": made["recovery"] | {"layers": layers}}))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", ".safetensors", "x.json", "a b.safetensors"])
def test_a_sidecar_is_a_file_in_the_folder_of_its_map(tmp_path: Path, name: str) -> None:
    made, _ = recovered()
    made["recovery"]["sidecar"]["file"] = name
    assert "recovery.sidecar.file: must match" in refusal(saved(tmp_path, made))


def test_a_recovered_map_follows_the_published_schema() -> None:
    jsonschema.validate(recovered()[0], json.loads(SCHEMA.read_text()))
