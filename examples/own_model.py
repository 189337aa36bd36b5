"""A model without labels: autotune run examples/own-model.yaml --task-file examples/own_model.py."""

import torch
from torch import nn

from autotune import GenericTask, OutputKind, register


class TwoTowers(nn.Module):
    """Stands for your model: it takes a dictionary and returns another one."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(500, 768)
        self.text = nn.Sequential(nn.Linear(768, 2048), nn.GELU(), nn.Linear(2048, 256))
        self.image = nn.Sequential(nn.Linear(768, 2048), nn.GELU(), nn.Linear(2048, 256))

    def forward(self, tokens, pixels):
        return {"embedding": self.text(self.words(tokens).mean(dim=1)) + self.image(pixels)}


def build():
    """Return the model, equal each time."""
    torch.manual_seed(0)  # yours loads its weights from a file
    return TwoTowers()


@register("own-model")
def own_model():
    """Two towers of random weights; accuracy is the mean cosine to full precision."""
    draw = torch.Generator().manual_seed(1)
    inputs = [
        {"tokens": torch.randint(500, (32, 12), generator=draw), "pixels": torch.randn(32, 768, generator=draw)}
        for _ in range(12)
    ]
    return GenericTask(build, inputs, output_kind=OutputKind.EMBEDDING)
