"""The comparison of samplers, at a size for every day."""

import itertools
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks" / "search"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import compare

    return compare


def test_ours_is_ahead_of_others_with_several_times_its_budget(compare: ModuleType) -> None:
    recording = compare.Recording.load("minilm-lee")

    def volume(method: str, units: int) -> float:
        search, probed = compare.METHODS[method]
        bought = units - (int(recording.probe_units) + 1 if probed else 0)
        maps = list(itertools.islice(search(recording, 0, bought), bought))
        return float(compare.volume(recording, compare.points_of(recording, maps)))

    ours = volume("sensitivity", 40)
    others = ("nsga2, uniform maps first", "nsga2, cold", "random, uniform maps first", "greedy fallback")
    assert ours > max(volume(method, 120) for method in others)


def test_recordings_say_what_was_measured(compare: ModuleType) -> None:
    for path in sorted((FOLDER / "recordings").glob("*.npz")):
        recording = compare.Recording.load(path.stem)
        full = recording.figures(compare.full_precision(recording))
        assert full["divergence"].value == 0.0
        assert full["latency_ratio"].value == 1.0
