"""Copies of a model that share its weights."""

import torch
from torch import nn

from workers.model.skeleton import sharing_weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(16, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.block(self.words(tokens)))
        return result


def test_a_copy_has_the_same_tensors_and_other_modules() -> None:
    model = Tied().eval()
    copy = sharing_weights(model)
    mine, theirs = (each.state_dict(keep_vars=True) for each in (model, copy))
    assert mine.keys() == theirs.keys()
    assert all(mine[name] is theirs[name] for name in mine)
    assert not {id(module) for module in model.modules()} & {id(module) for module in copy.modules()}
    assert copy.head.weight is copy.words.weight  # type: ignore[union-attr]


def test_replacing_a_layer_of_a_copy_leaves_the_original_alone() -> None:
    model, tokens = Tied().eval(), torch.arange(4)
    before = model(tokens)
    copy = sharing_weights(model)
    assert torch.equal(copy(tokens), before)
    copy.block = nn.Identity()  # type: ignore[assignment]
    assert torch.equal(model(tokens), before)
    assert not torch.equal(copy(tokens), before)
