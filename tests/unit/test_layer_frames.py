import runpy
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.job_spec import JobSpec
from autotune.store.records import TrialRecord
from dashboard import layer_frames as frames
from search_spaces.choice import CHOICES

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "browser" / "seed.py")))

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
