"""Unrolled attention computes what ``nn.MultiheadAttention`` does, or the module stays as it is and says why."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.discovery import discover, skipped
from workers.model.attention import UnrolledAttention, unroll_as, unroll_attention, unrolled_layers

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")

FEATURES, HEADS, SAMPLES = 8, 2, 3
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def attention(**arguments: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(FEATURES, HEADS, **arguments).eval()
    for name, parameter in module.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return module


def masks(tokens: int, keys: int, *, batched: bool) -> list[dict[str, Any]]:
    """Every way to say what a token may look at; each may look at the first key."""
    causal = torch.ones(tokens, keys).triu(1).bool()
    each = torch.rand((SAMPLES if batched else 1) * HEADS, tokens, keys) < 0.4
    each[..., 0] = False
    padded = torch.arange(keys) >= torch.tensor([keys, keys - 1, keys - 1])[:, None]
    padded = padded if batched else padded[1]
    added = [torch.zeros(mask.shape).masked_fill(mask, -torch.inf) for mask in (causal, padded)]
    return [
        {}, {"attn_mask": causal}, {"attn_mask": torch.randn(tokens, keys)}, {"attn_mask": each},
        {"key_padding_mask": padded}, {"key_padding_mask": padded, "attn_mask": each},
        {"key_padding_mask": added[1], "attn_mask": added[0]}, {"attn_mask": causal, "is_causal": True},
        {"attn_mask": added[0], "key_padding_mask": added[1], "is_causal": True},
    ]  # fmt: skip


@pytest.mark.parametrize("form", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 5}], ids=str)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("itself", [True, False])
def test_unrolled_attention_computes_the_same(form: dict[str, Any], batched: bool, itself: bool) -> None:
    if itself and "kdim" in form:
        pytest.skip("it cannot attend to itself")
    fused = attention(**form)
    unrolled = UnrolledAttention(fused)
    batch_first, tokens, keys = form.get("batch_first", False), 4, 4 if itself else 6

    def values(length: int, features: int) -> torch.Tensor:
        shape = (SAMPLES, length) if batch_first else (length, SAMPLES)
        return torch.randn(*(shape if batched else (length,)), features)

    query = values(tokens, FEATURES)
    given = (query, query, query) if itself else (query, values(keys, fused.kdim), values(keys, fused.vdim))
    wanted = [{"need_weights": False}, {}, {"average_attn_weights": False}]
    for more, mask in itertools.product(wanted, masks(tokens, keys, batched=batched)):
        with torch.no_grad():
            expected, actual = fused(*given, **mask, **more), unrolled(*given, **mask, **more)
        assert actual[0].shape == expected[0].shape
        torch.testing.assert_close(actual, expected)


def test_hint_without_a_mask_is_an_error_as_it_is_in_pytorch() -> None:
    x = torch.randn(2, FEATURES)
    for module in (attention(), UnrolledAttention(attention())):
        with pytest.raises(RuntimeError, match="is_causal"):
            module(x, x, x, is_causal=True)


def test_projections_share_the_memory_of_the_module() -> None:
    fused = attention()
    unrolled = UnrolledAttention(fused)
    fused.in_proj_weight.data.fill_(7.0)
    assert bool((unrolled.k_proj.weight == 7.0).all())
    assert sum(p.nbytes for p in unrolled.parameters()) == sum(p.nbytes for p in fused.parameters())


class Classifier(nn.Module):
    """PyTorch's own encoder, which runs as one kernel a layer."""

    def __init__(self, *, pool: bool = False, **arguments: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(FEATURES, HEADS, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, **arguments)
        self.head = nn.Linear(FEATURES, 3)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = torch.arange(x.shape[1]) >= torch.tensor([x.shape[1], 3])[:, None]
        x = self.encoder(x, src_key_padding_mask=padded)
        return self.head(x.mean(dim=1) if self.pool else x[:, 0])


X = torch.randn(2, 5, FEATURES, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module) -> torch.Tensor:
    outputs: torch.Tensor = model(X)
    return outputs


def test_encoder_of_pytorch_is_layers_from_end_to_end() -> None:
    model = Classifier().eval()
    with torch.no_grad():
        before = run(model)
        assert unroll_attention(model, run) == {}
        assert not model.encoder.use_nested_tensor
        torch.testing.assert_close(run(model), before)
    layers = {layer.name: layer for layer in discover(model, run)}
    block = [f"self_attn.{name}" for name in PROJECTIONS] + ["linear1", "linear2"]
    assert list(layers) == [*(f"encoder.layers.{i}.{name}" for i in range(2) for name in block), "head"]
    assert {layer.frozen_reason for layer in layers.values()} == {None}
    assert {layers[f"encoder.layers.0.self_attn.{name}"].group for name in PROJECTIONS[:3]} == {
        "encoder.layers.0.self_attn.qkv"
    }
    assert skipped(model) == {}


def test_decoder_attends_to_another_sequence_by_layers() -> None:
    model = nn.Sequential()
    model.decoder = nn.TransformerDecoderLayer(FEATURES, HEADS, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    source, target = torch.randn(6, 2, FEATURES), torch.randn(4, 2, FEATURES)

    def outputs(model: nn.Module) -> torch.Tensor:
        result: torch.Tensor = model.decoder(target, source, tgt_mask=causal, tgt_is_causal=True)
        return result

    model.eval()
    before = outputs(model)
    assert unroll_attention(model, outputs) == {}
    torch.testing.assert_close(outputs(model), before)
    layers = discover(model, outputs)
    assert len(layers) == 2 * 4 + 2
    assert {layer.frozen_reason for layer in layers} == {None}


def test_nested_tensors_stay_where_the_model_reads_padded_positions() -> None:
    model = Classifier(pool=True).eval()
    reasons = unroll_attention(model, run)
    assert list(reasons) == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    assert "enable_nested_tensor=False" in reasons["encoder.layers.0.self_attn"]
    assert model.encoder.use_nested_tensor
    assert isinstance(model.encoder.layers[0].self_attn, nn.MultiheadAttention)
    layers = {layer.name: layer.frozen_reason for layer in discover(model, run)}
    assert [name for name, reason in layers.items() if reason is None] == ["head"]
    assert unroll_attention(Classifier(pool=True, enable_nested_tensor=False).eval(), run) == {}


class Attending(nn.Module):
    """Attends to itself twice."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in (self.first, self.second):
            x = module(x, x, x)[0]
        return x


class Louder(nn.MultiheadAttention):
    def forward(self, *arguments: Any, **options: Any) -> Any:
        outputs, weights = super().forward(*arguments, **options)
        return 2.0 * outputs, weights


class Reading(Attending):
    """Reads what the unrolled form does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(super().forward(x), self.first.in_proj_weight[:FEATURES])


def hooked() -> nn.Module:
    module = attention()
    module.register_forward_hook(lambda *_: None)
    return module


def adapted() -> nn.Module:
    module = attention()
    module.adapter = nn.Linear(FEATURES, FEATURES)
    return module


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (hooked, "forward hooks"),
        (adapted, "child modules"),
        (lambda: Louder(FEATURES, HEADS), "Louder overrides forward"),
        (lambda: attention(add_bias_kv=True), "add_bias_kv"),
        (lambda: attention(add_zero_attn=True), "add_zero_attn"),
    ],
)
def test_attention_that_is_not_pytorchs_alone_stays_and_says_why(build: Callable[[], nn.Module], reason: str) -> None:
    first = build()
    model = Attending(first, attention()).eval()
    before = run(model)
    reasons = unroll_attention(model, run)
    assert list(reasons) == ["first"]
    assert reason in reasons["first"]
    assert model.first is first
    assert isinstance(model.second, UnrolledAttention)
    torch.testing.assert_close(run(model), before)


def test_attention_whose_weights_are_read_elsewhere_stays() -> None:
    model = Reading(attention(), attention()).eval()
    assert "does not run when it is unrolled: AttributeError" in unroll_attention(model, run)["first"]
    assert isinstance(model.first, nn.MultiheadAttention)
    assert isinstance(model.second, UnrolledAttention)


def test_attention_that_shares_a_weight_stays() -> None:
    model = Attending(attention(), attention()).eval()
    model.second.in_proj_weight = model.first.in_proj_weight
    assert {reason.partition(";")[0] for reason in unroll_attention(model, run).values()} == {
        "shares a weight with another module"
    }


def test_model_that_is_attention_itself_stays() -> None:
    assert "whole model" in unroll_attention(attention(), lambda m: m(X, X, X)[0])[""]


def test_module_under_two_names_is_unrolled_in_both_places() -> None:
    shared = attention()
    model = Attending(shared, shared).eval()
    before = run(model)
    assert unroll_attention(model, run) == {}
    assert model.first is model.second
    torch.testing.assert_close(run(model), before)


def test_a_map_unrolls_the_attention_its_layers_name_and_undoes_it() -> None:
    model = Attending(attention(), attention()).eval()
    fused = model.second
    take_back = unroll_as(model, {"second.q_proj", "first.out_proj"})
    assert isinstance(model.first, nn.MultiheadAttention)
    assert isinstance(model.second, UnrolledAttention)
    take_back()
    assert model.second is fused


@pytest.mark.parametrize("prefix", ["", "0."])
def test_layers_that_unrolling_has_called_are_known(prefix: str) -> None:
    encoder = nn.TransformerEncoderLayer(16, 2, 32)
    model = nn.Sequential(encoder) if prefix else encoder
    assert unrolled_layers(model) == set()
    unroll_as(model, {f"{prefix}self_attn.q_proj"})
    called = {f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")} | {"linear1", "linear2"}
    assert unrolled_layers(model) == {f"{prefix}{name}" for name in called}
