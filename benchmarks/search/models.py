"""Benchmark tasks that are not part of the product: a deep encoder and a character decoder."""

from collections.abc import Sequence

import torch
from torch import nn

from workers.task import OutputKind, Split
from workers.tasks import register
from workers.tasks.text.lee_corpus import background_documents
from workers.tasks.weights_cache import restore_or_train

SEED = {Split.EVALUATION: 1, Split.HELD_OUT: 2}


@register("deep-encoder")
class DeepEncoder:
    """40 BERT layers, 256 wide. It has no accuracy, so only the divergence counts."""

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
            # Layers of trained networks differ in scale; freshly initialised ones do not.
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


@register("char-decoder")
class CharDecoder:
    """A Llama of 8 layers, 384 wide, that was trained for minutes to predict the characters of news."""

    output_kind = OutputKind.LOGITS
    length, batch = 128, 8

    def build_model(self) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=128, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
            num_key_value_heads=6, max_position_embeddings=256, tie_word_embeddings=False, use_cache=False,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = LlamaForCausalLM(config)
            restore_or_train(model, "benchmark-char-decoder-1", self._train)
        return model.eval()

    def calibration(self) -> Sequence[torch.Tensor]:
        return self._windows(0, 16).split(self.batch)

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        return self._windows(SEED[split], 16).split(self.batch)

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch[:, :-1]).logits

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        targets = torch.cat([batch[:, 1:] for batch in self.evaluation(split)])
        return float((outputs.argmax(dim=-1) == targets).float().mean())

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        return self._windows(3, batch_size)

    def _train(self, model: nn.Module, steps: int = 150) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, step / 20) * (1.0 - step / steps)
            windows = self._windows(100 + step, 16)
            logits = self.forward(model, windows)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _windows(self, seed: int, count: int) -> torch.Tensor:
        """Return windows of the corpus, shape ``(count, length + 1)``; those evaluated on are of other documents."""
        documents = background_documents()
        half = len(documents) // 2
        part = documents[half:] if seed in (*SEED.values(), 3) else documents[:half]
        text = torch.tensor([min(ord(character), 127) for character in "\n".join(part)])
        starts = torch.randint(len(text) - self.length - 1, (count,), generator=torch.Generator().manual_seed(seed))
        return torch.stack([text[start : start + self.length + 1] for start in starts])
