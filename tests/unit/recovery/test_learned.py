import pytest
import torch
from safetensors.torch import save
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.errors import MapError
from search_spaces.quantization_map import ActivationRange, QuantizationMap, without_means
from workers.recovery.grid import Grid
from workers.recovery.learned import LearnedLayer, decoded, encoded, install

RANGE = ActivationRange(low=-3.0, high=3.0)
CHOICE = CHOICES["int8_static"]


def layer(module: nn.Module) -> LearnedLayer:
    """Return the integers of a layer, with one of them changed, and another bias."""
    assert isinstance(module.weight, torch.Tensor)
    grid = Grid.of(module.weight, CHOICE, RANGE)
    steps = grid.rounded.clone()
    steps[0, (~grid.fixed[0]).nonzero()[0]] -= 1
    bias = module.bias + 1.0 if isinstance(module.bias, torch.Tensor) else None
    return LearnedLayer(steps=steps.to(torch.int8).reshape(module.weight.shape), bias=bias)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))


def quantization() -> QuantizationMap:
    return QuantizationMap(choices={"0": CHOICE, "2": CHOICE}, ranges={"0": RANGE, "2": RANGE})


def test_file_holds_what_was_learned_and_is_equal_for_equal_layers() -> None:
    net = model()
    learned = {"0": layer(net[0]), "2": layer(net[2])}
    data = encoded(learned)
    found = decoded(data)
    assert encoded(found) == data == encoded({"2": learned["2"], "0": learned["0"]})
    assert torch.equal(found["0"].steps, learned["0"].steps)
    assert found["0"].bias is not None
    assert found["2"].bias is None


@pytest.mark.parametrize(
    "data",
    [b"", b"nothing of this kind", save({"0.weight": torch.zeros(2)}), save({"0.steps": torch.zeros(2, 2)})],
    ids=["empty", "text", "other names", "floats"],
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(MapError, match="the learned weights cannot be read"):
        decoded(data)


def test_installed_layers_round_to_the_integers_and_share_the_rest() -> None:
    net = model()
    before = net[0].weight.clone()
    learned = {"0": layer(net[0])}
    originals = list(net)
    install(net, quantization(), learned)
    assert torch.equal(Grid.of(net[0].weight, CHOICE, RANGE).rounded.to(torch.int8), learned["0"].steps)
    assert torch.equal(net[0].bias, learned["0"].bias)
    assert net[2] is originals[2]
    assert torch.equal(originals[0].weight, before)  # the layer itself was replaced, not changed


def test_layer_registered_under_two_names_is_replaced_under_both() -> None:
    net = model()
    net.append(net[0])
    install(net, quantization(), {"0": layer(net[0])})
    assert net[0] is net[3]


def test_other_models_are_refused() -> None:
    net = model()
    with pytest.raises(MapError, match="this one has no layer 'head'"):
        install(net, quantization(), {"head": layer(net[0])})
    with pytest.raises(MapError, match=r"layer '2' has weights of shape \(4, 8\), but the learned ones have \(8, 8\)"):
        install(net, quantization(), {"2": layer(net[0])})


def test_learned_biases_are_not_corrected_again() -> None:
    ranges = {name: ActivationRange(low=-1.0, high=1.0, means=(0.5,)) for name in ("0", "2")}
    found = without_means(ranges, {"0": layer(model()[0])})
    assert found["0"].means is None
    assert found["2"].means == (0.5,)
