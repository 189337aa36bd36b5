"""Linear layers that transformers keeps transposed, as in GPT-2, in the form that kernels take."""

from torch import nn


def straighten(model: nn.Module) -> None:
    """Replace every ``Conv1D`` of transformers, which is no convolution, by the linear layer that it is, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (type(child).__module__, type(child).__name__) == ("transformers.pytorch_utils", "Conv1D"):
                parent.register_module(name, _linear(child))


def _linear(transposed: nn.Module) -> nn.Linear:
    weight = transposed.get_parameter("weight").data.T.contiguous()
    layer = nn.Linear(1, 1, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(transposed.get_parameter("bias").data)
    return layer
