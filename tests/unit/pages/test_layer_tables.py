import runpy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.jobs.records import TrialRecord
from autotune.jobs.spec import JobSpec
from dashboard.tables import layers as frames
from search_spaces.choice import CHOICES
from search_spaces.layer import LayerKind

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "browser" / "seed.py")))

SPEC = JobSpec.parse({"name": "a job", "task": {"name": "minilm-lee"}})


@pytest.fixture(scope="module")
def trials() -> list[TrialRecord]:
    return [result.trial for result in islice(seed.results(SPEC, "0001"), 30)]


def test_layers_are_listed_in_execution_order_with_what_they_take(trials: list[TrialRecord]) -> None:
    description = seed.describe()
    frame = frames.layer_frame(description, trials[3].choices)
    assert frame["layer"].tolist() == [layer.name for layer in description.layers]
    assert dict(zip(frame["layer"], frame["choice"], strict=True)) == trials[3].choices
    assert frame["flops_share"].sum() == pytest.approx(1.0)
    pooler = frame.iloc[-1]
    assert pooler["refused"] == "every quantized choice: never ran on the example batch"
    assert frame["refused"][0].startswith("int8_static: an embedding has no input activations")


def test_letters_tell_activation_modes_apart() -> None:
    letters = {name: frames.letter(choice) for name, choice in CHOICES.items()}
    assert letters["int8_static"] == "S"
    assert letters["int8_dynamic"] == "D"
    assert letters["int8_weight_only"] == letters["int4_weight_only"] == "W"
    assert letters["fp32"] == letters["bf16"] == letters["fp16"] == ""


def test_probes_say_what_each_layer_of_a_map_costs(trials: list[TrialRecord]) -> None:
    probes = seed.probes()
    frame = frames.layer_frame(seed.describe(), trials[9].choices, probes)
    known = {(probe.layer, probe.choice): probe for probe in probes.layers}
    expected = [known[layer, choice].latency_ms for layer, choice in trials[9].choices.items()]
    assert frame["latency_ms"].tolist() == expected
    assert frame["divergence_share"].sum() == pytest.approx(1.0)
    # Of the 27 ms of full precision, 24 ms are inside the layers; what the others take stays.
    assert frame["time_share"].sum() == pytest.approx(sum(expected) / (3.0 + sum(expected)))
    assert frames.layer_frame(seed.describe(), trials[9].choices)["latency_ms"].isna().all()


def test_a_diff_has_only_the_layers_that_differ(trials: list[TrialRecord]) -> None:
    first, second = trials[8].choices, trials[9].choices
    diff = frames.diff_frame(seed.describe(), first, second, seed.probes())
    assert diff["layer"].tolist() == [layer for layer in first if first[layer] != second[layer]]
    assert 0 < len(diff) < len(first)
    back = frames.diff_frame(seed.describe(), second, first, seed.probes())
    assert diff["latency_ms"].tolist() == pytest.approx((-back["latency_ms"]).tolist())
    assert frames.diff_frame(seed.describe(), first, first, seed.probes()).empty
    sizes = seed.describe().layer_bytes
    assert diff["bytes"].tolist() == [sizes[name][second[name]] - sizes[name][first[name]] for name in diff["layer"]]


def test_layers_explain_the_gap_up_to_what_was_measured_besides(trials: list[TrialRecord]) -> None:
    pair = trials[0], trials[3]
    diff = frames.diff_frame(seed.describe(), pair[0].choices, pair[1].choices, seed.probes())
    gap = frames.latency_gap(diff, seed.probes(), pair)
    assert gap.predicted == pytest.approx(-24.0 * (1 - 0.33) * _quantizable_share(), rel=1e-6)
    assert gap.measured == pytest.approx(
        27.0 * (pair[1].figures["latency_ratio"].value - pair[0].figures["latency_ratio"].value)
    )
    divergence = frames.divergence_gap(diff, pair)
    assert divergence.measured == pytest.approx(divergence.predicted)
    assert frames.latency_gap(diff, seed.probes(), (trials[0], trials[10])).measured is None  # it failed


def _quantizable_share() -> float:
    layers = seed.describe().layers
    return sum(layer.flops for layer in layers if not layer.frozen_reason) / sum(layer.flops for layer in layers)


def test_the_accuracy_follows_from_the_divergence(trials: list[TrialRecord]) -> None:
    pair = trials[0].choices, trials[2].choices
    drops = frames.accuracy_drops(trials, pair, seed.probes())
    assert drops is not None
    assert drops[0] == pytest.approx(0.0)
    assert drops[1] == pytest.approx(trials[2].figures["accuracy_drop"].value, rel=0.05)
    assert frames.accuracy_drops([], pair, seed.probes()) is None


def test_layers_are_ranked_by_their_worst_choice() -> None:
    frame = frames.sensitivity_frame(seed.describe(), seed.probes())
    worst = frame.drop_duplicates("layer")["worst"].tolist()
    assert worst == sorted(worst, reverse=True)
    assert frame["layer"][0] == "encoder.layer.0.output.dense"
    assert "fp32" not in set(frame["choice"])
    assert frame[frame["choice"] == "bf16"]["saved_ms"].max() > 0


def test_choices_of_a_layer_are_counted_over_maps(trials: list[TrialRecord]) -> None:
    maps = [trial.choices for trial in trials[6:10]]
    frame = frames.choice_frame(seed.describe(), maps)
    assert frame.groupby("layer")["share"].sum().tolist() == pytest.approx([1.0] * 40)
    layer = "encoder.layer.3.output.dense"
    for row in frame[frame["layer"] == layer].to_dict("records"):
        assert row["share"] == [names[layer] for names in maps].count(row["choice"]) / 4
    disputed = frames.most_disputed(frame, 5)
    assert disputed["layer"].nunique() == 5
    assert disputed["share"].max() <= frame.groupby("layer")["share"].max().nsmallest(5).max()


def test_layers_of_one_type_are_taken_together(trials: list[TrialRecord]) -> None:
    roles = frames.role_frame(frames.choice_frame(seed.describe(), [trials[2].choices, trials[3].choices]))
    rows = {row["role"]: row for row in roles.to_dict("records")}
    assert rows["attention.self.query"]["layers"] == 6
    assert (rows["output.dense"]["static"], rows["output.dense"]["dynamic"]) == (0.5, 0.5)
    assert rows["word_embeddings"]["floating point"] == 1.0


@pytest.mark.parametrize(
    ("name", "role"), [("encoder.layer.0.output.dense", "output.dense"), ("features.3", "conv2d"), ("head", "head")]
)
def test_the_type_of_a_layer_is_in_its_name(name: str, role: str) -> None:
    layer = replace(seed.describe().layers[5], name=name, kind=LayerKind.CONV2D)
    assert frames.role_of(layer) == role


def test_a_summary_names_the_fewest_layers_that_cause_half_of_the_divergence() -> None:
    frame = frames.sensitivity_frame(seed.describe(), seed.probes())
    static = frame[frame["choice"] == "int8_static"]["divergence"].sort_values(ascending=False)
    count = int((static.cumsum() < 0.5 * static.sum()).sum()) + 1
    share = static[:count].sum() / static.sum()
    assert frames.sensitivity_summary(frame) == (
        f"If all layers take int8_static, {count} of {len(static)} layers (output.dense) cause "
        f"{100 * share:.0f} % of the expected divergence."
    )
    assert frames.sensitivity_summary(frame.assign(divergence=0.0)) == ""
    one = frame[frame["layer"] == "embeddings.word_embeddings"]
    assert "int8_weight_only, 1 of 1 layers (word_embeddings) causes 100 %" in frames.sensitivity_summary(one)
