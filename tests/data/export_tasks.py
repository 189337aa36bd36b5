"""Tasks with tiny random models, one of each kind that people deploy: an encoder, a CNN, a decoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from workers.task import OutputKind, Split
from workers.tasks import register
from workers.tasks.generic import GenericTask

_SEEDS = {Split.EVALUATION: 1, Split.HELD_OUT: 2}


class _Tiny:
    """What all share: seeded inputs, and an accuracy that full precision decides."""

    output_kind = OutputKind.LOGITS

    def network(self) -> nn.Module:
        raise NotImplementedError

    def inputs(self, seed: int, samples: int) -> Any:
        raise NotImplementedError

    def build_model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.network().eval()

    def calibration(self) -> Sequence[Any]:
        return [self.inputs(0, 16)]

    def evaluation(self, split: Split) -> Sequence[Any]:
        return [self.inputs(_SEEDS[split], 8), self.inputs(_SEEDS[split] + 2, 5)]

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        raise NotImplementedError

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        model = self.build_model()
        with torch.inference_mode():
            reference = torch.cat([self.forward(model, batch) for batch in self.evaluation(split)])
        return float((outputs.argmax(-1) == reference.argmax(-1)).double().mean())

    def latency_batch(self, batch_size: int) -> Any:
        return self.inputs(9, batch_size)


@register("tiny-cnn")
class TinyCNN(_Tiny):
    """Strided, depthwise, transposed and dilated convolutions in one and two dimensions."""

    def network(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding="same", groups=32, bias=False), nn.ReLU(),
            nn.ConvTranspose2d(32, 32, 3, padding=1, groups=2), nn.ReLU(),
            nn.Conv2d(32, 16, 3, padding="same", dilation=(1, 2)), nn.ReLU(), nn.Flatten(2),
            nn.Conv1d(16, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 31, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip

    def inputs(self, seed: int, samples: int) -> torch.Tensor:
        return torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(seed))

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(batch)
        return logits


class _TinyText(_Tiny):
    def inputs(self, seed: int, samples: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, 96, (samples, 7 + seed), generator=generator)
        mask = torch.ones_like(tokens)
        mask[0, -2:] = 0
        return {"input_ids": tokens, "attention_mask": mask}


@register("tiny-bert")
class TinyBert(_TinyText):
    """A transformer of two blocks that returns its outputs by name."""

    output_kind = OutputKind.EMBEDDING

    def network(self) -> nn.Module:
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        return BertModel(BertConfig(vocab_size=96, max_position_embeddings=32, **sizes))

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        outputs: torch.Tensor = model(**batch).last_hidden_state.mean(dim=1)
        return outputs


@register("tiny-llama")
class TinyLlama(_TinyText):
    """A decoder of two blocks with grouped queries, called with an argument that is no tensor."""

    def network(self) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        return LlamaForCausalLM(LlamaConfig(vocab_size=96, max_position_embeddings=32, num_key_value_heads=2, **sizes))

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = model(**batch, use_cache=False).logits[:, -1]
        return logits


@register("tiny-siglip")
class TinySiglip(_Tiny):
    """A vision transformer of transformers whose pooling is PyTorch's own attention."""

    output_kind = OutputKind.EMBEDDING

    def network(self) -> nn.Module:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
        return SiglipVisionModel(SiglipVisionConfig(image_size=16, patch_size=8, **sizes))

    def inputs(self, seed: int, samples: int) -> torch.Tensor:
        return torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(seed))

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(pixel_values=batch).pooler_output
        return outputs


class Classifier(nn.Module):
    """PyTorch's own encoder over tokens, which skips those that are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(96, 64)
        block = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(self.rows(tokens), src_key_padding_mask=padded)[:, 0])
        return logits


def _classifier() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier()


@register("tiny-transformer")
def tiny_transformer() -> GenericTask:
    """A classifier of PyTorch's own parts, whose attention has to be unrolled."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([12, 7, 9, 12, 3, 5, 12, 8])
    padded = torch.arange(12) >= lengths[:, None]
    return GenericTask(_classifier, [(torch.randint(96, (8, 12), generator=generator), padded) for _ in range(6)])
