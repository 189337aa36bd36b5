"""Bundles: their folder, and models of all their maps that share one set of layers."""

import gc
import json
import re
import runpy
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import autotune
from autotune.errors import NotFoundError
from autotune.maps import map_file
from autotune.serving.bundle import BUNDLE, BundledMap, BundleFile
from autotune.serving.governed import Governed
from search_spaces.errors import MapError
from workers.backends.packed import PackedLayer, union_bytes
from workers.task import Split
from workers.tasks import build_task, load_task_file

DATA = Path(__file__).parents[2] / "data"
load_task_file(str(DATA / "export_tasks.py"))
maps = SimpleNamespace(**runpy.run_path(str(DATA / "export_maps.py")))
recovered_maps = SimpleNamespace(**runpy.run_path(str(DATA / "recovered_maps.py")))

TASK = "tiny-transformer"
LINEAR = ("encoder.layers.0.linear1", "encoder.layers.0.linear2", "encoder.layers.1.linear1", "head")
ATTENTION = "encoder.layers.0.self_attn.q_proj"
#: Number of a map -> its choices; all run on any processor with AVX2. The last one is recovered.
CHOICES: Mapping[int, Mapping[str, str]] = {
    0: {},
    3: dict.fromkeys([*LINEAR, ATTENTION], "int8_static"),
    4: dict.fromkeys([*LINEAR, ATTENTION], "int8_dynamic"),
    5: {LINEAR[0]: "int8_static_smooth", LINEAR[1]: "int8_weight_only", "rows": "int8_weight_only"},
    8: dict.fromkeys(LINEAR, "int4_weight_only"),
    9: dict.fromkeys(LINEAR, "int8_static"),
}
RECOVERED = 9


def full_precision() -> nn.Module:
    return build_task(TASK, {}).build_model()


def outputs(model: nn.Module) -> torch.Tensor:
    task = build_task(TASK, {})
    with torch.inference_mode():
        return torch.cat([task.forward(model, batch) for batch in task.evaluation(Split.EVALUATION)])


def written(folder: Path, numbers: tuple[int, ...] = tuple(CHOICES), **changes: Any) -> Path:
    """Write a bundle with some of the maps."""
    for number in numbers:
        document, learned = maps.with_choices(TASK, CHOICES[number]), b""
        if number == RECOVERED:
            document, learned = recovered_maps.recovered(document, unrolled(document))
        map_file.write(document, folder / f"map-{number}.json", learned)
    content = {
        "job": "j", "job_name": "tiny", "model_fingerprint": maps.blank(TASK)["model_fingerprint"],
        "objectives": ("latency_p50_ms", "divergence"), "constraints": {}, "recommended": numbers[-1],
        "maps": {n: BundledMap(file=f"map-{n}.json", label=None, figures={}) for n in numbers},
        "weight_bytes": 1, "left_out": {},
    }  # fmt: skip
    file = BundleFile(**(content | changes))
    (folder / BUNDLE).write_text(file.model_dump_json(by_alias=True))
    return folder


def unrolled(document: Mapping[str, Any]) -> nn.Module:
    model = full_precision()
    autotune.maps.apply.NativeMap(map_file.MapFile.model_validate(document)).unroll(model)  # type: ignore[attr-defined]
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def governed(folder: Path) -> Governed:
    return autotune.load_bundle(folder).govern(full_precision())


@pytest.mark.parametrize("number", CHOICES)
def test_each_model_computes_what_its_map_alone_computes(number: int, folder: Path, governed: Governed) -> None:
    alone = autotune.load_map(folder / f"map-{number}.json").apply(full_precision())
    assert torch.equal(outputs(governed[number]), outputs(alone))


def test_maps_give_other_numbers(governed: Governed) -> None:
    found = [outputs(model) for model in governed.values()]
    assert all(not torch.equal(one, other) for i, one in enumerate(found) for other in found[:i])


def test_every_tensor_and_every_prepared_layer_is_there_once(governed: Governed) -> None:
    names = dict(governed[0].named_parameters())
    for number, model in governed.items():
        for name, tensor in model.named_parameters():
            assert tensor is names[name], (number, name)
    # No two maps have a layer and choice in common, apart from full precision.
    assert governed[0].get_submodule("encoder.layers.1.linear2") is governed[8].get_submodule(
        "encoder.layers.1.linear2"
    )
    assert governed[5].get_submodule(LINEAR[2]) is governed[0].get_submodule(LINEAR[2])
    plain, learned = governed[3].get_submodule("head"), governed[RECOVERED].get_submodule("head")
    assert plain is not learned
    assert not {id(m) for m in governed[0].modules() if list(m.children())} & {
        id(m) for m in governed[3].modules() if list(m.children())
    }


def test_layers_of_equal_choices_are_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHOICES, 10, {LINEAR[0]: "int8_static"})  # type: ignore[arg-type]
    found = autotune.load_bundle(written(tmp_path, (3, 10))).govern(full_precision())
    assert found[3].get_submodule(LINEAR[0]) is found[10].get_submodule(LINEAR[0])


def test_bytes_are_those_of_the_union(tmp_path: Path) -> None:
    both, static, dynamic, full = (
        autotune.load_bundle(written(tmp_path / str(i), numbers)).govern(full_precision())
        for i, numbers in enumerate(((3, 4), (3,), (4,), (0,)))
    )
    assert full.weight_bytes() == sum(tensor.nbytes for tensor in full_precision().state_dict().values())
    biases = sum(4 * full[0].get_submodule(name).out_features for name in CHOICES[3])  # type: ignore[operator]
    assert both.weight_bytes() == static.weight_bytes() + biases
    assert static.weight_bytes() == dynamic.weight_bytes() < full.weight_bytes()


def test_union_counts_a_layer_once_and_what_layers_share_once(governed: Governed) -> None:
    static, dynamic = (governed[number].get_submodule("head") for number in (3, 4))
    assert isinstance(static, PackedLayer)
    assert isinstance(dynamic, PackedLayer)
    assert union_bytes([static, static]) == static.packed_bytes
    assert union_bytes([static, dynamic]) == static.packed_bytes + 4 * 10  # a bias of its own
    weight_only = governed[5].get_submodule(LINEAR[1])
    assert isinstance(weight_only, PackedLayer)
    assert union_bytes([static, weight_only]) == static.packed_bytes + weight_only.packed_bytes


def test_layers_that_no_map_needs_in_full_precision_are_freed(tmp_path: Path) -> None:
    model = full_precision()
    kept, freed = (weakref.ref(model.get_submodule(name).weight) for name in ("encoder.layers.1.linear2", "head"))
    governed = autotune.load_bundle(written(tmp_path, (3, 4))).govern(model)
    del model
    gc.collect()
    assert kept() is not None
    assert freed() is None
    assert len(governed) == 2


def test_the_full_precision_model_computes_the_same_as_before(folder: Path) -> None:
    model = full_precision()
    before = outputs(model)
    autotune.load_bundle(folder).govern(model)
    assert torch.allclose(outputs(model), before, atol=1e-6)


def test_threads_run_mixed_maps_bit_for_bit_as_one_thread_does(governed: Governed) -> None:
    alone = {number: outputs(model) for number, model in governed.items()}
    threads = 8
    barrier = threading.Barrier(threads)

    def serve(thread: int) -> list[bool]:
        order = list(governed)[thread % len(governed) :] + list(governed)[: thread % len(governed)]
        barrier.wait()
        return [torch.equal(outputs(governed[number]), alone[number]) for number in order * 3]

    with ThreadPoolExecutor(threads) as pool:
        assert all(all(same) for same in pool.map(serve, range(threads)))


def test_static_layers_turn_dynamic_without_other_tensors(governed: Governed) -> None:
    before, held = outputs(governed[3]), governed.weight_bytes()
    flipped = governed.flipped(3, CHOICES[3])
    assert torch.equal(outputs(flipped), outputs(governed[4]))
    assert torch.equal(outputs(governed[3]), before)
    assert governed.weight_bytes() == held
    own, others = dict(flipped.named_parameters()), dict(governed[3].named_parameters())
    assert own.keys() == others.keys()
    assert all(own[name] is others[name] for name in own)


def test_other_layers_stay_as_they_are(governed: Governed) -> None:
    flipped = governed.flipped(3, [LINEAR[1]])
    for name in CHOICES[3]:
        assert (flipped.get_submodule(name) is governed[3].get_submodule(name)) == (name != LINEAR[1]), name
    assert torch.equal(outputs(governed.flipped(3, [])), outputs(governed[3]))


def test_smooth_and_recovered_layers_turn_dynamic_too(governed: Governed) -> None:
    for number, name in ((5, LINEAR[0]), (RECOVERED, "head")):
        flipped = governed.flipped(number, [name])
        assert not torch.equal(outputs(flipped), outputs(governed[number]))
        assert torch.allclose(outputs(flipped), outputs(governed[number]), atol=0.5)


@pytest.mark.parametrize(
    ("number", "name"), [(0, "head"), (3, "nothing"), (4, "head"), (5, LINEAR[1]), (5, f"{LINEAR[0]}._inner")]
)
def test_a_layer_that_is_not_static_is_named(number: int, name: str, governed: Governed) -> None:
    complaint = f"only static int8 layers can turn dynamic, but '{name}' of map {number} is none; those are: "
    static = {3: ", ".join(n for n in layer_names(governed[3]) if n in CHOICES[3]), 5: LINEAR[0]}
    with pytest.raises(MapError, match=re.escape(complaint + static.get(number, "none")) + "$"):
        governed.flipped(number, [name])


def layer_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules()]


def test_a_bundle_tells_its_maps(folder: Path, governed: Governed) -> None:
    assert list(governed) == list(governed.maps) == list(CHOICES)
    assert governed.recommended == RECOVERED
    with pytest.raises(KeyError, match="unknown map '7'"):
        governed[7]


def test_a_bundle_is_for_one_model(folder: Path) -> None:
    model = full_precision()
    with torch.no_grad():
        model.get_submodule("head").weight[0, 0] += 1.0  # type: ignore[index]
    with pytest.raises(MapError, match="the map is for other weights"):
        autotune.load_bundle(folder).govern(model)
    assert isinstance(model.get_submodule("encoder.layers.0.self_attn"), nn.MultiheadAttention)
    with pytest.raises(MapError, match="the map is for another model"):
        autotune.load_bundle(folder).govern(nn.Sequential(nn.Linear(4, 4)))


def test_a_folder_without_a_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no bundle '.*bundle\.json'; 'autotune bundle' writes one"):
        autotune.load_bundle(tmp_path)


def test_a_missing_map_is_named(tmp_path: Path) -> None:
    written(tmp_path, (0, 3))
    (tmp_path / "map-3.json").unlink()
    with pytest.raises(NotFoundError, match=r"there is no map file '.*map-3\.json'"):
        autotune.load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": "autotune.bundle/v9"}, r"is not a bundle; .*\n  schema:"),
        ({"recommended": 4}, "the recommended map must be among the maps of .*, but 4 is not"),
        ({"model_fingerprint": "0" * 64}, r"are for one model, but 'map-0\.json' is for another"),
        ({"maps": {"0": {"file": "../map-0.json", "label": None, "figures": {}}}}, r"maps\.0\.file"),
    ],
)
def test_a_changed_bundle_is_refused(change: Mapping[str, Any], complaint: str, tmp_path: Path) -> None:
    path = written(tmp_path, (0, 3)) / BUNDLE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MapError, match=complaint):
        autotune.load_bundle(tmp_path)
