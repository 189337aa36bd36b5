import torch
from torch import nn

from workers.recovery.blocks import Block, blocks_of


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Residual(), Residual()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layer:
            x = block(x)
        return x


class Net(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.head, self.stem, self.body = nn.Linear(4, 2), nn.Linear(3, 4), body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)))


def found(model: nn.Module, features: int, *, layers: list[str] | None = None) -> list[Block]:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return blocks_of(model, layers or names, lambda: model(torch.zeros(1, features)))


def test_repeated_modules_are_blocks_and_others_stand_alone() -> None:
    order = ["stem", "body.layer.0.up", "body.layer.0.down", "body.layer.1.up", "body.layer.1.down", "head"]
    blocks = found(Net(Encoder()), 3, layers=order)
    assert [block.name for block in blocks] == ["stem", "body.layer.0", "body.layer.1", "head"]
    assert blocks[1] == Block(name="body.layer.0", layers=("body.layer.0.up", "body.layer.0.down"), calls=1)


def test_lists_of_repeated_blocks_within_lists_are_divided() -> None:
    stages = nn.Sequential(nn.Sequential(Residual(), Residual()), nn.Sequential(Residual(), Residual()))
    assert [block.name for block in found(stages, 4)] == ["0.0", "0.1", "1.0", "1.1"]


def test_model_without_repetition_is_learned_layer_by_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    assert [block.name for block in found(model, 4)] == ["0", "2", "3"]


def test_modules_that_are_not_called_are_divided() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4)})
            self.encoder = Encoder()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.encoder(self.inner["two"](self.inner["one"](x)))

    names = [block.name for block in found(Holder(), 4)]
    assert names == ["inner.one", "inner.two", "encoder.layer.0", "encoder.layer.1"]


def test_calls_of_a_pass_are_counted() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ModuleList([Residual(), Residual()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer[1](self.layer[0](self.layer[0](x)))

    assert [(block.name, block.calls) for block in found(Twice(), 4)] == [("layer.0", 2), ("layer.1", 1)]


def test_layers_that_no_pass_reaches_are_in_no_block() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    assert [block.name for block in found(Idle(), 4)] == ["used"]
