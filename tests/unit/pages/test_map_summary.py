import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from dashboard.tables.cards import cards
from dashboard.tables.map_summary import map_summary
from workers.timing.estimates import Figure

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "browser" / "seed.py")))

MODEL = seed.describe()
NAMES = [layer.name for layer in MODEL.layers]
MIXED = {
    name: "int8_weight_only" if name.startswith("embeddings") else "bf16" if ".output.dense" in name else "int8_static"
    for name in NAMES
} | {"pooler.dense": "fp32"}


def test_a_summary_says_what_stays_and_what_it_would_cost() -> None:
    found = map_summary(MODEL, MIXED, seed.probes())
    kept = [name for name, choice in MIXED.items() if choice == "bf16"]
    outputs = [name for name in kept if "attention" not in name]
    static = {probe.layer: probe.divergence for probe in seed.probes().layers if probe.choice == "int8_static"}
    others = sum(p.divergence for p in seed.probes().layers if p.choice == MIXED[p.layer] == "int8_weight_only")
    share = sum(static[name] for name in outputs) / (sum(static.values()) + others)
    assert len(outputs) == 6
    assert found == (
        f"13 of 40 layers stay in bf16 and fp32, most often attention.output.dense, which would cause "
        f"{100 * sum(static[name] for name in kept if 'attention' in name) / (sum(static.values()) + others):.0f} % "
        "of the error in int8_static. The others take int8_static (24), int8_weight_only (3)."
    )
    only = {name: "int8_static" if "attention.output" in name else choice for name, choice in MIXED.items()}
    assert map_summary(MODEL, only, seed.probes()).startswith(
        f"7 of 40 layers stay in bf16 and fp32, mostly output.dense, which would cause {100 * share:.0f} % of the error"
    )


def test_one_layer_stays_by_its_name() -> None:
    choices = {name: "fp32" if name == "pooler.dense" else "int8_dynamic" for name in NAMES}
    assert map_summary(MODEL, choices, None) == (
        "1 of 40 layers stays in fp32, dense. The others take int8_dynamic (39)."
    )


def test_without_probes_a_summary_says_no_cost() -> None:
    assert "most often attention.output.dense. The others" in map_summary(MODEL, MIXED, None)


@pytest.mark.parametrize(
    ("choice", "start"), [("int8_static", "All 40 layers are quantized"), ("bf16", "All 40 layers stay")]
)
def test_a_uniform_map_is_summed_up_by_its_choice(choice: str, start: str) -> None:
    assert map_summary(MODEL, dict.fromkeys(NAMES, choice), None).endswith(f": {choice} (40).")
    assert map_summary(MODEL, dict.fromkeys(NAMES, choice), None).startswith(start)


def test_cards_show_what_was_measured() -> None:
    figures = {"latency_ratio": Figure(value=0.5), "latency_p50_ms": Figure(value=10.0), "accuracy": Figure(value=0.7)}
    speed, accuracy = cards(figures, {}, ["latency_p50_ms", "accuracy"])
    assert (speed.value, speed.note, accuracy.note) == ("2.00x", "10.0 ms", "")
    assert cards({}, {}, ["latency_p50_ms", "accuracy"]) == []
    exact = {"accuracy": Figure(value=0.7), "accuracy_drop": Figure(value=0.0)}
    assert cards(exact, {}, ["latency_p50_ms", "accuracy"])[0].note == "+0.00 %"


def test_the_speed_of_a_workload_is_named() -> None:
    figures = {"decode_latency_ratio": Figure(value=0.8), "decode_latency_p50_ms": Figure(value=8.0)}
    (speed,) = cards(figures, {"decode_latency_p50_ms": Figure(value=10.0)}, ["decode_latency_p50_ms", "accuracy"])
    assert (speed.label, speed.value) == ("Speed, time per output token p50", "1.25x")
    assert speed.note == "8.00 ms, was 10.0 ms"
