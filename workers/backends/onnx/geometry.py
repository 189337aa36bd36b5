"""Geometry of convolutions as ONNX attributes."""

from typing import Any

from torch import nn


def convolution_geometry(conv: nn.Module) -> dict[str, Any]:
    """Return the ONNX attributes of a convolution; ``pads`` lists all begins, then all ends."""
    assert isinstance(conv, nn.Conv1d | nn.Conv2d)
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    begins = {"same": [total // 2 for total in reach], "valid": [0] * len(reach)}
    begin = begins[conv.padding] if isinstance(conv.padding, str) else list(conv.padding)
    ends = [total - b for total, b in zip(reach, begin, strict=True)] if conv.padding == "same" else begin
    return {
        "kernel_shape": conv.kernel_size,
        "strides": conv.stride,
        "dilations": conv.dilation,
        "group": conv.groups,
        "pads": [*begin, *ends],
    }
