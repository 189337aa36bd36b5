from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.discovery import discover, skipped, with_latency_shapes
from search_spaces.layer import Layer, LayerKind

X = torch.ones(2, 4)


def layers_of(model: nn.Module, x: torch.Tensor = X) -> dict[str, Layer]:
    return {layer.name: layer for layer in discover(model.eval(), lambda m: m(x))}


class Backwards(nn.Module):
    """Runs its layers in the order opposite to their registration, one of them twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3, bias=False)
        self.first = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.first(x)))


def test_layers_come_in_execution_order_and_those_that_never_ran_last() -> None:
    layers = layers_of(Backwards())
    assert list(layers) == ["first", "last", "never"]
    assert [layer.order for layer in layers.values()] == [0, 1, 2]


def test_layers_know_the_shapes_they_are_timed_at() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.rarely = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.always(self.always(x))
            return self.rarely(x[:1]) if len(x) > 5 else x

    model = Branching().eval()
    found = discover(model, lambda m: m(torch.ones(6, 4)))
    inputs = [torch.ones(2, 4), torch.ones(7, 4), torch.ones(2, 4)]
    timed = with_latency_shapes(model, found, [lambda x=x: model(x) for x in inputs])
    assert {layer.name: layer.latency_shapes for layer in timed} == {
        "always": ((2, 4), (7, 4)),
        "rarely": ((1, 4),),
    }
    assert not model.always._forward_hooks
    (idle,) = {layer.latency_shapes for layer in with_latency_shapes(model, found, [])}
    assert idle == ()


def test_recurrent_layer_says_its_sizes_and_takes_packed_sequences() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 4), torch.ones(1, 4)])
    (layer,) = discover(nn.Sequential(nn.LSTM(4, 5, 2, bidirectional=True, bias=False)).eval(), lambda m: m(packed))
    assert (layer.weight_shape, layer.has_bias, layer.input_shape) == ((2, 2, 20, 4), False, (4, 4))
    weights = 2 * 20 * (4 + 5) + 2 * 20 * (10 + 5)
    assert (layer.weight_bytes, layer.flops, layer.frozen_reason) == (4 * weights, 2 * 4 * weights, None)


def test_calls_and_flops_add_up_over_calls() -> None:
    layers = layers_of(Backwards())
    assert {name: layer.calls for name, layer in layers.items()} == {"first": 2, "last": 1, "never": 0}
    assert {name: layer.flops for name, layer in layers.items()} == {
        "first": 2 * (2 * 2 * 4 * 4),
        "last": 2 * 2 * 3 * 4,
        "never": 0,
    }


def test_layer_says_what_it_is() -> None:
    assert layers_of(Backwards())["last"] == Layer(
        name="last", kind=LayerKind.LINEAR, weight_shape=(3, 4), has_bias=False, weight_bytes=4 * 12,
        input_shape=(2, 4), flops=48, calls=1, order=1, group="last",
    )  # fmt: skip


def test_layer_that_never_ran_is_frozen() -> None:
    layers = layers_of(Backwards())
    assert "never ran" in str(layers["never"].frozen_reason)
    assert layers["never"].input_shape == ()
    assert layers["first"].frozen_reason is None


@pytest.mark.parametrize(
    ("module", "x", "kind", "flops", "groups"),
    [
        (nn.Conv1d(4, 6, 3), torch.ones(2, 4, 10), LayerKind.CONV1D, 2 * (2 * 6 * 8) * (4 * 3), 1),
        (nn.Conv2d(4, 6, 3, padding=1), torch.ones(1, 4, 5, 5), LayerKind.CONV2D, 2 * (6 * 25) * (4 * 9), 1),
        (nn.Conv2d(4, 6, 3, groups=2), torch.ones(1, 4, 5, 5), LayerKind.CONV2D, 2 * (6 * 9) * (2 * 9), 2),
        (nn.ConvTranspose1d(4, 6, 3, 2), torch.ones(2, 4, 10), LayerKind.CONV_TRANSPOSE1D, 2 * 2 * 4 * 10 * 6 * 3, 1),
        (
            *(nn.ConvTranspose2d(4, 6, 2, 2, groups=2), torch.ones(1, 4, 5, 5), LayerKind.CONV_TRANSPOSE2D),
            *(2 * 4 * 25 * 3 * 4, 2),
        ),
        (nn.Embedding(9, 4), torch.ones(2, 3, dtype=torch.long), LayerKind.EMBEDDING, 0, 1),
        (nn.EmbeddingBag(9, 4), torch.ones(2, 3, dtype=torch.long), LayerKind.EMBEDDING_BAG, 0, 1),
        (nn.LSTM(4, 5), torch.ones(3, 2, 4), LayerKind.LSTM, 2 * (3 * 2) * (4 * 5 * (4 + 5)), 1),
        (nn.GRU(4, 5, 2, bidirectional=True), torch.ones(3, 4), LayerKind.GRU, 2 * 3 * 2 * 3 * 5 * (4 + 5 + 10 + 5), 1),
    ],
)
def test_kinds_and_their_flops(module: nn.Module, x: torch.Tensor, kind: LayerKind, flops: int, groups: int) -> None:
    (layer,) = layers_of(nn.Sequential(module), x).values()
    assert (layer.kind, layer.flops, layer.conv_groups, layer.frozen_reason) == (kind, flops, groups, None)
    assert layer.input_shape == tuple(x.shape)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(indices))


def test_tied_layers_are_frozen_and_name_each_other() -> None:
    layers = layers_of(Tied(), torch.tensor([1]))
    assert "shares its weight with head" in str(layers["embed"].frozen_reason)
    assert "shares its weight with embed" in str(layers["head"].frozen_reason)


def test_weight_shared_with_a_module_that_is_no_layer_is_frozen() -> None:
    class Copycat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.other = nn.Module()
            self.other.borrowed = self.layer.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.layer(x), self.other.borrowed)

    assert "shares its weight with other" in str(layers_of(Copycat())["layer"].frozen_reason)


def test_one_module_under_two_names_is_one_layer() -> None:
    shared = nn.Linear(4, 4)
    layers = layers_of(nn.Sequential(shared, nn.ReLU(), shared))
    assert list(layers) == ["0"]
    assert layers["0"].calls == 2
    assert layers["0"].frozen_reason is None


class Doubling(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    """A subclass that computes what its base computes."""


def test_subclass_counts_only_if_it_keeps_the_forward() -> None:
    assert list(layers_of(nn.Sequential(Doubling(4, 4), Renamed(4, 4)))) == ["1"]


def hooked() -> nn.Module:
    linear = nn.Linear(4, 4)
    linear.register_forward_pre_hook(lambda module, inputs: None)
    return linear


def patched() -> nn.Module:
    linear = nn.Linear(4, 4)
    linear.forward = lambda x: x
    return linear


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(input=x)


@pytest.mark.parametrize(
    ("build", "x", "reason"),
    [
        (hooked, X, "forward hooks"),
        (patched, X, "patched forward"),
        (lambda: nn.Linear(4, 4).double(), X.double(), "torch.float64 weights"),
        (lambda: nn.Conv1d(4, 4, 3, padding=1, padding_mode="reflect"), torch.ones(1, 4, 5), "pads with 'reflect'"),
        (lambda: nn.Embedding(4, 4, max_norm=1.0), torch.tensor([1]), "renormalises"),
        (lambda: nn.EmbeddingBag(4, 4, mode="max"), torch.tensor([[1]]), "maximum of rows"),
        (lambda: nn.EmbeddingBag(4, 4, padding_idx=0), torch.tensor([[1]]), "skips padding"),
        pytest.param(
            *(lambda: nn.LSTM(4, 4, proj_size=2), X, "projects its hidden states"),
            marks=pytest.mark.filterwarnings("ignore:LSTM with projections"),
        ),
    ],
)
def test_layer_no_replacement_could_copy_is_frozen(
    build: Callable[[], nn.Module], x: torch.Tensor, reason: str
) -> None:
    (layer,) = layers_of(nn.Sequential(build()), x).values()
    assert reason in str(layer.frozen_reason)


def test_input_by_keyword_is_an_input() -> None:
    (layer,) = layers_of(nn.Sequential(ByKeyword())).values()
    assert (layer.input_shape, layer.frozen_reason) == ((2, 4), None)


def test_model_that_is_a_layer_itself_is_frozen() -> None:
    assert "whole model" in str(layers_of(nn.Linear(4, 4))[""].frozen_reason)


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_the_fused_encoder_reads_past_are_frozen(norm_first: bool) -> None:
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=norm_first)
    layers = layers_of(nn.Sequential(encoder, nn.Linear(4, 2)), torch.ones(1, 3, 4))
    assert {name for name, layer in layers.items() if layer.frozen_reason} == {
        "0.linear1", "0.linear2", "0.self_attn.out_proj",
    }  # fmt: skip


def test_model_is_left_as_it_was() -> None:
    model = Backwards()

    def fail(model: nn.Module) -> None:
        model(X)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        discover(model, fail)
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_of_a_fusion_group_carry_its_name() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.out = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.query(x) * self.key(x))

    groups = {name: layer.group for name, layer in layers_of(nn.Sequential(Attention())).items()}
    assert groups == {"0.query": "0.qkv", "0.key": "0.qkv", "0.out": "0.out"}


class Scaled(nn.Linear):
    """A linear layer that does more than one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(x)


def test_every_weight_is_in_a_layer_or_skipped_with_the_reason() -> None:
    model = nn.ModuleDict(
        {
            "cell": nn.LSTMCell(4, 4), "cube": nn.Conv3d(2, 2, 3), "attention": nn.MultiheadAttention(4, 2),
            "scaled": Scaled(4, 4), "norm": nn.LayerNorm(4), "linear": nn.Linear(4, 4),
        }
    )  # fmt: skip
    model.position = nn.Parameter(torch.zeros(3, 4))
    found = skipped(model)
    assert found["cell"] == "no quantized kernel replaces LSTMCell"
    assert found["cube"] == "no quantized kernel replaces Conv3d"
    assert "without calling layers" in found["attention"]
    assert found["scaled"].startswith("Scaled overrides forward")
    layers = {layer.name for layer in discover(model, lambda m: m["linear"](X))}
    assert set(found) == {"(model)", "cell", "cube", "attention", "scaled"}
    owners = {
        name.rpartition(".")[0] or "(model)" for name, parameter in model.named_parameters() if parameter.dim() > 1
    }
    assert owners == layers | set(found)
