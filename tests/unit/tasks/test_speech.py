"""Speech to text: audio files, what is written greedily, word errors, the cache."""

import contextlib
import csv
import json
import math
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autotune.exporters.runtime import _splits
from search_spaces.discovery import discover, skipped
from workers import quality
from workers.candidate import Candidate
from workers.errors import TaskError
from workers.evaluation.evaluator import Evaluator
from workers.measurement import Workload
from workers.model.fingerprint import fingerprint
from workers.progress import silent
from workers.setup import MeasurementSettings, WorkerSetup
from workers.task import Split, workloads
from workers.tasks.speech import generation
from workers.tasks.speech.audio import RATE, read_folder
from workers.tasks.speech.models import TINY, build_speech_model, speech_of
from workers.tasks.speech.seq2seq import SpeechSeq2Seq

SMALL = {"output_tokens": 6, "chunks": 4, "batch_size": 3}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_speech_model("tiny-whisper")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as checkpoints are published: the tiny model with more tokens, and a processor."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

    folder = tmp_path_factory.mktemp("whisper")
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    special += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    tokenizer = WhisperTokenizer(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": [*special, "<|notimestamps|>"]})
    WhisperProcessor(WhisperFeatureExtractor(feature_size=16, chunk_length=2), tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {**TINY["tiny-whisper"], "vocab_size": len(tokenizer), "decoder_start_token_id": 257}
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes))
    model.generation_config = GenerationConfig(
        decoder_start_token_id=257,
        eos_token_id=256,
        pad_token_id=256,
        begin_suppress_tokens=[220, 256],
        suppress_tokens=[1, 2],
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": 258 + number for number, code in enumerate(LANGUAGES)},
        task_to_id={name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in TASK_IDS},
        no_timestamps_token_id=len(tokenizer) - 1,
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def english(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint as an English-only one."""
    folder = tmp_path_factory.mktemp("english") / "whisper"
    shutil.copytree(checkpoint, folder)
    with_generation(folder, is_multilingual=False, lang_to_id=None, task_to_id=None)
    return folder


def with_generation(folder: Path, **changed: object) -> None:
    """Change a checkpoint's generation_config.json; None removes a key."""
    path = folder / "generation_config.json"
    known = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))


def write_wav(path: Path, seconds: float, *, rate: int = RATE, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        samples = np.sin(np.arange(int(seconds * rate * channels)) * (0.01 + 0.001 * len(path.stem) + seconds))
        file.writeframes((16384 * samples).astype("<i2").tobytes())


def write_table(
    folder: Path, rows: list[tuple[str, str]], head: tuple[str, ...] = ("file_name", "transcription")
) -> None:
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Six files of half a second to a second, with transcripts."""
    for number in range(6):
        write_wav(tmp_path / f"{number}.wav", 0.5 + 0.1 * number)
    write_table(tmp_path, [(f"{n}.wav", text) for n, text in enumerate(["a b", "c", "Go!", "x", "y z", "ho"])])
    return tmp_path


def one_by_one(task: SpeechSeq2Seq, model: nn.Module, split: Split) -> torch.Tensor:
    """What is written if each token takes one whole pass."""
    rows = []
    for batch in task.evaluation(split):
        features, ids = batch["input_features"], batch["decoder_input_ids"][:, : len(task._speech.prefix)]
        logits = torch.zeros(len(ids), 0, 1)
        for _ in range(task.output_tokens):
            logits = model(input_features=features, decoder_input_ids=ids).logits[:, len(task._speech.prefix) - 1 :]
            ids = torch.cat([ids, task._speech.chosen(logits)[:, -1:]], dim=1)
        rows.append(task._speech.chosen(logits))
    return torch.cat(rows)


def test_full_precision_writes_what_it_is_compared_with(model: nn.Module) -> None:
    task = SpeechSeq2Seq(**SMALL)
    written = task.generate(model, Split.EVALUATION)
    assert torch.equal(written, one_by_one(task, model, Split.EVALUATION))
    led = torch.cat([batch["decoder_input_ids"] for batch in task.evaluation(Split.EVALUATION)])
    assert torch.equal(written[:, :-1], led[:, 1:])
    assert task.accuracy(written, Split.EVALUATION) == 1.0


def test_another_model_is_judged_by_what_it_writes_by_itself(model: nn.Module) -> None:
    torch.manual_seed(5)
    other = build_speech_model("tiny-whisper")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        task = SpeechSeq2Seq(**SMALL)
        expected = one_by_one(task, other, Split.HELD_OUT)
    assert torch.equal(task.generate(other, Split.HELD_OUT), expected)
    assert torch.equal(quality.judged(task, other, Split.HELD_OUT), expected)
    assert 0.0 < task.accuracy(expected, Split.HELD_OUT) < 1.0


@contextlib.contextmanager
def changed(model: nn.Module) -> Iterator[None]:
    """Change the model's last layer, so that it writes something else than full precision."""
    weight = model.get_parameter("proj_out.weight")
    kept = weight.detach().clone()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight.add_(0.05 * noise)
        try:
            yield
        finally:
            weight.copy_(kept)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_logits_and_answers_take_one_encoding(model: nn.Module, batch_size: int) -> None:
    task = SpeechSeq2Seq(**{**SMALL, "batch_size": batch_size})
    encoded: list[int] = []
    with changed(model):
        expected = quality.outputs(task, model, Split.EVALUATION)
        with torch.inference_mode():
            written = task.generate(model, Split.EVALUATION)
        hook = model.get_submodule("model.encoder").register_forward_hook(
            lambda _, __, output: encoded.append(len(output.last_hidden_state))
        )
        try:
            outputs, answers = quality.outputs_and_judged(task, model, Split.EVALUATION)
        finally:
            hook.remove()
        led = torch.cat([batch["decoder_input_ids"] for batch in task.evaluation(Split.EVALUATION)])
    assert torch.equal(outputs, expected)
    assert torch.equal(answers, written)
    assert not torch.equal(answers[:, :-1], led[:, 1:])  # what is given is not what is written
    assert len(encoded) == math.ceil(4 / batch_size)
    assert sum(encoded) == 4


def test_exports_are_judged_by_what_they_write(model: nn.Module) -> None:
    task = SpeechSeq2Seq(**SMALL)
    found = _splits(task, model, silent)
    assert found["evaluation"].is_floating_point()
    assert torch.equal(found["judged_evaluation"], task.generate(model, Split.EVALUATION))
    assert torch.equal(found["judged_held_out"], task.generate(model, Split.HELD_OUT))


def test_accuracy_counts_wrong_words_against_transcripts(spoken: Path) -> None:
    task = SpeechSeq2Seq(**SMALL, audio=str(spoken))

    def written(*texts: str) -> torch.Tensor:
        return torch.tensor([[*text.encode(), *[256] * (6 - len(text))] for text in texts])

    assert task.accuracy(written("c", "Y, z."), Split.EVALUATION) == 1.0
    assert task.accuracy(written("c", "y x"), Split.EVALUATION) == pytest.approx(2 / 3)
    assert task.accuracy(written("", "y"), Split.EVALUATION) == pytest.approx(1 / 3)
    assert task.accuracy(written("a b c", "a b c"), Split.EVALUATION) == 0.0
    assert task.accuracy(written("go", "ho"), Split.HELD_OUT) == 1.0


def test_transcripts_lead_the_logits_and_nothing_counts_behind_their_end(spoken: Path, model: nn.Module) -> None:
    task = SpeechSeq2Seq(**SMALL, audio=str(spoken))
    (batch,) = task.evaluation(Split.EVALUATION)
    assert batch["decoder_input_ids"].tolist() == [[257, ord("c"), *[256] * 4], [257, *b"y z", 256, 256]]
    with torch.inference_mode():
        logits = task.forward(model, batch)
    assert (logits != 0.0).any(dim=-1).tolist() == [[True] * 2 + [False] * 4, [True] * 4 + [False] * 2]


def test_nothing_is_written_behind_the_end_or_that_is_suppressed(checkpoint: Path) -> None:
    logits = torch.zeros(1, 4, 400)
    for position, likely in enumerate([[256, 220, 7], [1, 2, 9], [256], [5]]):
        logits[0, position, likely] = torch.arange(len(likely), 0.0, -1.0)
    assert speech_of(str(checkpoint), "en").chosen(logits).tolist() == [[7, 9, 256, 256]]


def test_decoding_with_the_cache_writes_what_whole_passes_write(model: nn.Module) -> None:
    task = SpeechSeq2Seq(**SMALL)
    timed = workloads(task, 2)
    batch = task.latency_batch(2)
    with torch.inference_mode():
        answer = timed[Workload.DECODE].prepare(model)
        first, lengths, tokens = answer.token, [], []
        for _ in range(13):
            lengths.append(answer.cache.get_seq_length())
            tokens.append(answer.token)
            timed[Workload.DECODE].run(model, answer)
        begun = timed[Workload.PREFILL].run(model, timed[Workload.PREFILL].prepare(model))
    assert lengths == [1, 2, 3, 4, 5, 6] * 2 + [1]
    assert torch.equal(torch.cat(tokens[:6], dim=1)[:, :5], batch["decoder_input_ids"][:, 1:])
    assert torch.equal(torch.cat(tokens[:6], dim=1), torch.cat(tokens[6:12], dim=1))
    assert torch.equal(begun.token, first)


def test_a_published_folder_is_a_checkpoint(checkpoint: Path, spoken: Path) -> None:
    task = SpeechSeq2Seq(**SMALL, checkpoint=str(checkpoint), audio=str(spoken), language="en")
    prefix = list(task._speech.prefix)
    assert prefix == [257, 258, 359, 363]
    (batch,) = task.calibration()
    assert batch["decoder_input_ids"][0].tolist() == [*prefix, *task._speech.encode("a b"), 256, 256]
    assert task._speech.decode([*prefix, *task._speech.encode("Hi ho"), 256]) == "Hi ho"
    assert fingerprint(build_speech_model(str(checkpoint))) == fingerprint(task.build_model())


@pytest.mark.parametrize(("name", "language"), [("checkpoint", "de"), ("english", "")])
def test_full_precision_writes_what_transformers_writes(
    name: str, language: str, spoken: Path, request: pytest.FixtureRequest
) -> None:
    from transformers import WhisperProcessor

    folder = request.getfixturevalue(name)
    task = SpeechSeq2Seq(**{**SMALL, "output_tokens": 12}, checkpoint=str(folder), audio=str(spoken), language=language)
    model = task.build_model()
    (batch,) = task.evaluation(Split.EVALUATION)
    spoken_in = {"language": language} if language else {}
    expected = model.generate(batch["input_features"], max_new_tokens=12, **spoken_in)
    written = task.generate(model, Split.EVALUATION)
    assert written[:, : expected.shape[1]].tolist() == expected.tolist()
    assert (written[:, expected.shape[1] :] == 256).all()
    texts = WhisperProcessor.from_pretrained(folder).batch_decode(expected, skip_special_tokens=True)
    assert [task._speech.decode(tokens) for tokens in written.tolist()] == texts


def test_answers_end_early_and_audio_is_encoded_once(model: nn.Module) -> None:
    task = SpeechSeq2Seq(**SMALL)
    lengths: list[int] = []
    encoded: list[int] = []
    hooks = [
        model.get_submodule("model.encoder").register_forward_hook(lambda *_: encoded.append(1)),
        model.get_submodule("model.decoder").register_forward_hook(
            lambda _, __, kwargs, ___: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        ),
    ]
    bias = torch.zeros(258)
    try:
        task.generate(model, Split.EVALUATION)
        assert (len(encoded), lengths) == (2, [1] * 12)  # 4 chunks in batches of 3 and 1, 6 tokens each
        lengths.clear()
        bias[256] = 1e4
        hooks.append(model.get_submodule("proj_out").register_forward_hook(lambda *given: given[2] + bias))
        assert (task.generate(model, Split.EVALUATION) == 256).all()
        assert lengths == [1, 1]
    finally:
        for hook in hooks:
            hook.remove()


def test_a_model_without_a_cache_writes_the_same(model: nn.Module) -> None:
    class Graph(nn.Module):
        """Takes the arguments that were traced, and counts its samples."""

        def __init__(self) -> None:
            super().__init__()
            self.samples: list[int] = []

        def forward(
            self, *, input_features: torch.Tensor, decoder_input_ids: torch.Tensor, use_cache: bool
        ) -> nn.Module:
            self.samples.append(len(input_features))
            return model(input_features=input_features, decoder_input_ids=decoder_input_ids, use_cache=False)

    graph, task = Graph(), SpeechSeq2Seq(**{**SMALL, "batch_size": 4})
    with changed(model), torch.no_grad():
        written = task.generate(graph, Split.HELD_OUT)
        assert torch.equal(written, task.generate(model, Split.HELD_OUT))
    # Answers that no longer change are left out.
    assert graph.samples[0] == 4 > graph.samples[-1]
    assert graph.samples == sorted(graph.samples, reverse=True)
    with changed(model):
        outputs, answers = quality.outputs_and_judged(task, graph, Split.HELD_OUT)
        assert torch.equal(outputs, quality.outputs(task, graph, Split.HELD_OUT))
    assert torch.equal(answers, written)


def test_transcripts_begin_as_the_model_begins_its_answers(
    english: Path, spoken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = SpeechSeq2Seq(**SMALL, checkpoint=str(english), audio=str(spoken))
    space, letter = list(task._speech.encode(" ")), list(task._speech.encode("c"))
    for begun, leading in ((space, [*space, *letter]), (letter, letter)):
        monkeypatch.setattr(generation, "with_cache", lambda *_, begun=begun: torch.tensor([begun] * 3))
        (batch,) = SpeechSeq2Seq(**SMALL, checkpoint=str(english), audio=str(spoken)).evaluation(Split.EVALUATION)
        row = batch["decoder_input_ids"][0].tolist()
        assert row == [*task._speech.prefix, *leading, *[256] * (5 - len(leading))]


def test_prompts_are_those_of_transformers(checkpoint: Path, english: Path, tmp_path: Path) -> None:
    def prefix(base: Path, spoken: str, **changed: object) -> tuple[int, ...]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(base, folder)
        with_generation(folder, **changed)
        return speech_of(str(folder), spoken).prefix

    assert prefix(english, "") == (257, 363)
    assert prefix(english, "", forced_decoder_ids=[[1, 363]]) == (257, 363)
    assert prefix(checkpoint, "german") == prefix(checkpoint, "de") == (257, 260, 359, 363)
    assert prefix(checkpoint, "DE", forced_decoder_ids=[[1, None], [2, 359]]) == (257, 260, 359, 363)
    # Tuned checkpoints may state their language.
    assert prefix(checkpoint, "", forced_decoder_ids=[[1, 260], [2, 359]]) == (257, 260, 359, 363)
    assert prefix(checkpoint, "", language="de") == (257, 260, 359, 363)
    assert prefix(checkpoint, "", language="<|de|>") == (257, 260, 359, 363)
    with pytest.raises(TaskError, match=r"writes several languages, .*; give the language .* as the parameter"):
        prefix(checkpoint, "", forced_decoder_ids=[[1, None], [2, 359]])


def test_what_does_not_fit_a_checkpoint_is_refused(checkpoint: Path, english: Path, spoken: Path) -> None:
    with pytest.raises(TaskError, match=r"writes several languages, .*; give the language .* as the parameter"):
        speech_of(str(checkpoint), "")
    with pytest.raises(TaskError, match=r"writes one language only and has no prompt for 'en'; leave .* empty"):
        speech_of(str(english), "en")
    with pytest.raises(TaskError, match="'tiny-whisper' writes one language only"):
        speech_of("tiny-whisper", "en")
    with pytest.raises(TaskError, match=r"'output_tokens' must be at most 252, .*, but got 253"):
        SpeechSeq2Seq(checkpoint=str(checkpoint), audio=str(spoken), language="en", output_tokens=253).calibration()


def test_old_checkpoints_keep_suppressed_tokens_in_their_configuration(english: Path, tmp_path: Path) -> None:
    shutil.copytree(english, tmp_path / "old")
    (tmp_path / "old" / "generation_config.json").unlink()
    path = tmp_path / "old" / "config.json"
    beyond = 50256  # a default of Whisper, which this vocabulary lacks
    path.write_text(json.dumps(json.loads(path.read_text()) | {"begin_suppress_tokens": [220, beyond]}))
    speech = speech_of(str(tmp_path / "old"), "")
    assert (speech.prefix, speech.suppressed_first) == ((257, 363), (220,))
    assert speech.likeliest(torch.arange(364.0).roll(221).unsqueeze(0), first=True).tolist() == [219]


def test_languages_that_the_checkpoint_lacks_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "older")
    path = tmp_path / "older" / "tokenizer.json"
    path.write_text(path.read_text().replace("<|yue|>", "<|other|>"))
    with pytest.raises(TaskError, match=r"has no token <\|yue\|>; give a language that it knows"):
        speech_of(str(tmp_path / "older"), "cantonese")


def test_audio_without_a_table_is_cut_to_chunks(tmp_path: Path) -> None:
    write_wav(tmp_path / "b.wav", 1.2)
    write_wav(tmp_path / "a.wav", 0.5)
    task = SpeechSeq2Seq(**SMALL, audio=str(tmp_path), chunk_seconds=0.5)
    assert [(chunk.name, len(chunk.waveform) / RATE) for chunk in task._chunks] == [
        ("a.wav", 0.5), ("b.wav", 0.5), ("b.wav", 0.5), ("b.wav", pytest.approx(0.2))
    ]  # fmt: skip
    assert np.abs(task._chunks[1].waveform).max() == pytest.approx(0.5, abs=0.01)


def test_every_weight_is_a_layer_or_says_why_not(model: nn.Module) -> None:
    task = SpeechSeq2Seq(**SMALL)
    layers = {layer.name: layer for layer in discover(model, lambda m: task.forward(m, task.latency_batch(1)))}
    assert {name for name, layer in layers.items() if layer.frozen_reason} == {"proj_out", "model.decoder.embed_tokens"}
    assert layers["model.decoder.layers.0.encoder_attn.k_proj"].group.endswith("encoder_attn.qkv")
    assert list(skipped(model)) == ["model.decoder.embed_positions"]


def test_every_layer_and_workload_is_measured_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = MeasurementSettings(threads=1, repeats=10, warmup_s=0.0, workloads=(Workload.PREFILL, Workload.DECODE))
    found = Evaluator(WorkerSetup(task="speech-seq2seq", task_parameters=SMALL, measurement=settings))
    refusals = found.description.refusals
    choices = {name: "int8_static" for name, refused in refusals.items() if "int8_static" not in refused}
    choices["model.encoder.embed_positions"] = "int8_weight_only"
    measurement = found.measure(Candidate(number=0, choices=choices))
    assert {"model.encoder.conv1", "model.encoder.conv2"} <= set(choices)
    assert 0.0 < measurement.divergence < 0.05
    assert [samples.workload for samples in measurement.latency] == [
        Workload.FORWARD,
        Workload.PREFILL,
        Workload.DECODE,
    ]
    assert measurement.accuracy > 0.5
    silence = torch.zeros(4, 6, dtype=torch.long)
    monkeypatch.setattr(generation, "with_cache", lambda _, features, *__, **___: silence[: len(features)])
    assert found.quality.of(choices, Split.EVALUATION) == (0.0, measurement.divergence)


def test_another_runtime_is_judged_by_what_it_writes() -> None:
    pytest.importorskip("onnxruntime")
    settings = MeasurementSettings(threads=1, repeats=10, warmup_s=0.0)
    parameters = {**SMALL, "output_tokens": 3}
    setup = WorkerSetup(task="speech-seq2seq", task_parameters=parameters, backend="onnxruntime", measurement=settings)
    measurement = Evaluator(setup).measure(Candidate(number=0, choices={"model.encoder.conv2": "int8_dynamic"}))
    assert 0.0 < measurement.divergence < 0.01
    assert measurement.accuracy > 0.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"checkpoint": "no/such", "audio": "."}, "cannot load the processor of checkpoint 'no/such': .* tiny-whisper"),
        ({"checkpoint": "no/such"}, "'no/such' needs a folder of wav files; give it as the parameter audio"),
        ({"audio": "no/such"}, "cannot read the audio 'no/such': .*; give a folder of wav files"),
        ({"chunk_seconds": -1}, "'chunk_seconds' must be a number from 0 to 3600, but got -1"),
        ({"chunk_seconds": 3}, "'chunk_seconds' must be at most 2, the window of 'tiny-whisper' in seconds"),
        ({"output_tokens": 0}, "'output_tokens' must be an integer from 1"),
        ({"language": 3}, "'language' must be text, but got 3"),
    ],
)
def test_what_cannot_be_used_is_explained(
    parameters: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def use() -> None:
        SpeechSeq2Seq(**parameters).calibration()  # type: ignore[arg-type]

    with pytest.raises(TaskError, match=message):
        use()


def test_audio_that_cannot_be_used_is_explained(spoken: Path, checkpoint: Path) -> None:
    def use(**parameters: object) -> None:
        SpeechSeq2Seq(**{**SMALL, "audio": str(spoken), **parameters}).calibration()  # type: ignore[arg-type]

    with pytest.raises(
        TaskError, match=r"transcript of '0.wav' has 3 tokens plus an end token, but output_tokens is 3; raise"
    ):
        use(output_tokens=3)
    with pytest.raises(TaskError, match=r"'2.wav' lasts 0.7 s, but a chunk 0.6 s, and its transcript cannot be cut"):
        use(chunk_seconds=0.6)
    with pytest.raises(TaskError, match=r"cannot load the processor .* Unsupported language: klingon"):
        use(checkpoint=str(checkpoint), language="klingon")
    write_wav(spoken / "0.wav", 0.5, rate=8000, channels=2)
    with pytest.raises(TaskError, match=r"1 channel of 16 bits at 16000 Hz, but .* has 2 of 16 bits at 8000 Hz; conv"):
        use()
    (spoken / "0.wav").write_text("no sound")
    with pytest.raises(TaskError, match=r"0.wav': .*; give wav files of plain samples"):
        use()
    write_table(spoken, [("1.wav", "a")], head=("file", "transcription"))
    with pytest.raises(TaskError, match="must have the columns file_name and transcription"):
        use()
    write_table(spoken, [("1.wav", "a"), ("2.wav", "b")])
    with pytest.raises(TaskError, match=r"at least 3 chunks are needed, .* has 2; give more or longer files"):
        use()


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(TaskError, match=r"Whisper's architecture, but checkpoint .* has the type 'llama'"):
        build_speech_model(str(tmp_path))


@pytest.mark.parametrize("name", ["../out.wav", "/etc/hostname", "link.wav"])
def test_jobs_of_others_read_no_files_outside_the_data_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = tmp_path / "data" / "audio"
    audio.mkdir(parents=True)
    write_wav(tmp_path / "data" / "inside.wav", 0.1)
    write_wav(tmp_path / "out.wav", 0.1)
    (audio / "link.wav").symlink_to(tmp_path / "out.wav")
    monkeypatch.setenv("AUTOTUNE_DATA", str(tmp_path / "data"))
    write_table(audio, [("../inside.wav", "a")])
    assert len(read_folder("audio")) == 1
    write_table(audio, [(name.replace("../out", "../../out"), "a")])
    with pytest.raises(TaskError, match="must be a path inside the workers' folder"):
        read_folder("audio")
    with pytest.raises(TaskError, match="must be a path inside the workers' folder"):
        SpeechSeq2Seq(**SMALL, audio="..").calibration()
