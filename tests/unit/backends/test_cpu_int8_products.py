"""int8 weights are packed once for all choices of a layer that multiply by them."""

import gc
import weakref

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu.int8_products import FbgemmProduct, Int8Product, OneDnnProduct, WidenedProduct, packed_once
from workers.backends.cpu.linear import Int8Linear, int8_linear
from workers.device.processor import this_processor

RANGE = ActivationRange(low=-2.0, high=2.0)
BITS = this_processor().int8_weight_bits
PRODUCTS = [
    pytest.param(OneDnnProduct, marks=pytest.mark.skipif(not this_processor().is_x86, reason="x86 only")),
    pytest.param(FbgemmProduct, marks=pytest.mark.skipif(not this_processor().is_x86, reason="x86 only")),
    WidenedProduct,
]


def prepared(linear: nn.Linear, choice: str, product: type[Int8Product]) -> Int8Linear:
    wanted = CHOICES[choice].with_weight_bits(BITS)
    with torch.no_grad():
        made = int8_linear(linear, wanted, RANGE if wanted.needs_calibration else None, product)
    assert isinstance(made, Int8Linear)
    return made


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("bias", [True, False])
def test_static_dynamic_and_per_token_share_one_copy(product: type[Int8Product], bias: bool) -> None:
    linear, x = nn.Linear(32, 16, bias=bias), torch.rand(5, 32)
    layers = [prepared(linear, choice, product) for choice in ("int8_static", "int8_dynamic", "int8_dynamic_per_token")]
    # FBGEMM packs the bias, which the product per token must not add.
    assert len({id(layer._product) for layer in layers}) == (2 if product.packs_bias and bias else 1)
    alone = [prepared(nn.Linear(32, 16, bias=bias), "int8_static", product)._product for _ in range(2)]
    assert alone[0] is not alone[1]
    with torch.inference_mode():
        for layer in layers:
            torch.testing.assert_close(layer(x), linear(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_changed_weight_or_bias_is_packed_anew(product: type[Int8Product]) -> None:
    linear, x = nn.Linear(32, 16), torch.rand(5, 32)
    before = prepared(linear, "int8_static", product)
    expected = before(x)
    with torch.no_grad():
        linear.weight.neg_()
        linear.bias.add_(1.0)
    after = prepared(linear, "int8_static", product)
    assert after._product is not before._product
    assert torch.equal(before(x), expected), "a prepared layer shares nothing with the original"
    with torch.inference_mode():
        torch.testing.assert_close(after(x), linear(x), atol=0.05, rtol=0.05)


def test_a_corrected_bias_gets_its_own_copy_only_where_it_is_packed() -> None:
    linear = nn.Linear(32, 16)
    other = torch.ones(16)
    for product in (OneDnnProduct, FbgemmProduct):
        first, second = (packed_once(product, linear, BITS, bias) for bias in (linear.bias.detach(), other))
        assert (first is second) is not product.packs_bias


def test_the_copy_goes_with_the_last_layer_that_uses_it() -> None:
    linear = nn.Linear(32, 16)
    one, two = (prepared(linear, choice, WidenedProduct) for choice in ("int8_static", "int8_dynamic"))
    kept = weakref.ref(one._product)
    del one
    gc.collect()
    assert kept() is two._product
    del two
    gc.collect()
    assert kept() is None


def test_weights_without_a_version_are_never_shared() -> None:
    with torch.inference_mode():
        linear = nn.Linear(32, 16)
        first, second = (packed_once(WidenedProduct, linear, BITS, None) for _ in range(2))
    assert first is not second
