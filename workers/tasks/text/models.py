"""Causal language models and their tokenizers: checkpoints of transformers, and tiny models with random weights."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from workers.errors import TaskError
from workers.tasks.checkpoints import explained, quiet_transformers, source
from workers.tasks.text.experts import separate_experts
from workers.tasks.text.transposed import straighten

#: Sizes of the tiny models, whose tokens are UTF-8 bytes.
_SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
#: Checkpoints without files: name -> architecture and configuration.
TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tiny-llama": ("llama", _SIZES),
    "tiny-tied-llama": ("llama", {**_SIZES, "tie_word_embeddings": True}),
    "tiny-mixtral": ("mixtral", {**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
#: Checkpoints apart from folders and names, for error messages.
_OTHERS = ("a GGUF file in either", *TINY)
#: Largest difference of logits, relative to the largest logit, that the order of summation may cause.
_TOLERANCE = 1e-4


def build_causal_model(checkpoint: str) -> nn.Module:
    """Return a causal language model in fp32 and evaluation mode, with experts and projections as linear layers.

    Args:
        checkpoint: name of a tiny model, a folder of safetensors, a name on the hub, or a GGUF file in either, whose
            weights are dequantized.

    Raises:
        TaskError: if the model cannot be loaded, or linear layers change its outputs.
    """
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        from transformers import AutoConfig, AutoModelForCausalLM

        if checkpoint in TINY:
            torch.manual_seed(0)
            architecture, sizes = TINY[checkpoint]
            config = AutoConfig.for_model(architecture, **sizes)
            model: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        else:
            with explained("model", checkpoint, _OTHERS):
                model = AutoModelForCausalLM.from_pretrained(
                    **_source(checkpoint), dtype=torch.float32, use_safetensors=True
                )
    model.eval()
    tokens = torch.arange(16)[None]
    with torch.inference_mode():
        before = model(input_ids=tokens, use_cache=False).logits
    separate_experts(model)
    straighten(model)
    with torch.inference_mode():
        after = model(input_ids=tokens, use_cache=False).logits
    if not torch.allclose(after, before, rtol=0.0, atol=_TOLERANCE * float(before.abs().max())):
        raise TaskError(
            f"converting the experts and projections of checkpoint {checkpoint!r} to linear layers changes its "
            "outputs, so they cannot be quantized; report the architecture"
        )
    return model


def encode(checkpoint: str, text: str, *, special: bool = True) -> torch.Tensor:
    """Return the tokens of a text, shape ``(tokens,)``: bytes for a tiny model, else by the checkpoint's tokenizer.

    ``special`` tokens are those that the tokenizer puts around a text.

    Raises:
        TaskError: if the checkpoint has no tokenizer.
    """
    if checkpoint in TINY:
        return torch.tensor(list(text.encode()))
    return torch.tensor(_tokenizer(checkpoint)(text, verbose=False, add_special_tokens=special)["input_ids"])


def beginning(checkpoint: str) -> torch.Tensor:
    """Return the special tokens that the tokenizer puts in front of every text, such as BOS; shape ``(tokens,)``.

    A model that was trained with them predicts badly without: Gemma 3 270M has a perplexity of 703 instead of 40.

    Raises:
        TaskError: if the checkpoint has no tokenizer.
    """
    whole, alone = encode(checkpoint, "text"), encode(checkpoint, "text", special=False)
    starts = range(len(whole) - len(alone) + 1)
    found = next((start for start in starts if torch.equal(whole[start : start + len(alone)], alone)), 0)
    return whole[:found]


def encode_first(checkpoint: str, text: str, count: int) -> torch.Tensor:
    """Return the first ``count`` tokens of a text without special tokens, or all if there are fewer; see ``encode``.

    A tokenizer needs hundreds of bytes of memory per token, so only the start of a long text is encoded. Tokens may
    differ near the cut, which is therefore at least ``count`` tokens behind the returned ones.
    """
    length = 16 * count  # in characters; most tokens have at most a quarter of 16
    while True:
        tokens = encode(checkpoint, text[:length], special=False)
        if length >= len(text) or len(tokens) >= 2 * count:
            return tokens[:count]
        length *= 2


@functools.cache
def _tokenizer(checkpoint: str) -> Any:
    with quiet_transformers():
        from transformers import AutoTokenizer

        with explained("tokenizer", checkpoint, _OTHERS):
            return AutoTokenizer.from_pretrained(**_source(checkpoint))


def _source(checkpoint: str) -> dict[str, str]:
    """Return transformers' arguments for a checkpoint: its folder or name on the hub, and the GGUF file in it."""
    place, _, file = checkpoint.rpartition("/") if checkpoint.endswith(".gguf") else (checkpoint, "", "")
    found = {"pretrained_model_name_or_path": source(place)}
    return found | {"gguf_file": file} if file else found
