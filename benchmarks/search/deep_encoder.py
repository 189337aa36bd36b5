"""A task of the benchmark: a deep transformer with random weights, 243 layers to decide about."""

from collections.abc import Sequence

import torch
from torch import nn

from workers.task import OutputKind, Split
from workers.tasks import register

SEED = {Split.EVALUATION: 1, Split.HELD_OUT: 2}


@register("deep-encoder")
class DeepEncoder:
    """40 BERT layers, 256 wide. It has no accuracy of its own; what counts is the divergence."""

    output_kind = OutputKind.EMBEDDING

    def build_model(self) -> nn.Module:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=1000, hidden_size=256, num_hidden_layers=40, num_attention_heads=4, intermediate_size=1024,
            max_position_embeddings=128, hidden_act="gelu",
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = BertModel(config, add_pooling_layer=False)
            # Layers of trained networks differ in scale; those of fresh ones do not.
            for parameter in model.parameters():
                parameter.data *= torch.empty(()).log_normal_(0.0, 0.5) if parameter.dim() > 1 else 1.0
        return model.eval()

    def calibration(self) -> Sequence[torch.Tensor]:
        return self._tokens(0, 32).split(8)

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        return self._tokens(SEED[split], 16).split(8)

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).last_hidden_state.mean(dim=1)

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        return float(outputs.isfinite().all())

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        return self._tokens(3, batch_size)

    def _tokens(self, seed: int, count: int) -> torch.Tensor:
        return torch.randint(1000, (count, 64), generator=torch.Generator().manual_seed(seed))
