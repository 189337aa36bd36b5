"""Copies of a model that share its weights."""

import torch
from torch import nn

from workers.model.skeleton import sharing_weights, with_layers


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


class Wired(nn.Module):
    """A layer under two names, in a list and as an attribute that PyTorch does not see, and a parametrized one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)
        self.alias = self.head
        self.blocks = nn.ModuleList([self.head, nn.Linear(8, 8)])
        self.bound = [self.head]
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bound[0](self.alias(self.head(x)))
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.normed(x)
        return result


def test_a_layer_is_replaced_everywhere() -> None:
    torch.manual_seed(0)
    model, x = Wired().eval(), torch.randn(2, 8)
    before, layer = model(x), nn.Linear(8, 8).eval()
    copy = with_layers(model, {"head": layer})
    assert copy.head is copy.alias is copy.blocks[0] is copy.bound[0] is layer  # type: ignore[index]
    assert torch.equal(with_layers(model, {})(x), before)
    assert torch.equal(model(x), before)
    model.head.load_state_dict(layer.state_dict())
    assert torch.equal(copy(x), model(x))


def test_copies_share_the_tensors_of_parametrizations() -> None:
    model = Wired().eval()
    copy = with_layers(model, {})
    mine, theirs = (each.state_dict(keep_vars=True) for each in (model, copy))
    assert any("parametrizations" in name for name in mine)
    assert all(mine[name] is theirs[name] for name in mine)
