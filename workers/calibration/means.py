"""Means of a layer's inputs."""

import torch

from search_spaces.layer import Layer
from workers.calibration.significant_digits import shortened


class ChannelMeans:
    """The mean of each channel of a layer's inputs."""

    def __init__(self, layer: Layer) -> None:
        """Take a linear or convolutional layer."""
        # The channel dimension comes last, or before the spatial dimensions of a convolution.
        self._dim = 1 - len(layer.weight_shape)
        self._values = 0
        self._sum: torch.Tensor = torch.zeros(())

    def add(self, x: torch.Tensor) -> None:
        """Add inputs of shape ``(..., channels)``, or ``(..., channels, *spatial)`` for a convolution; fp32."""
        channels = x.movedim(self._dim, 0).reshape(x.shape[self._dim], -1)
        self._sum = self._sum + channels.sum(dim=1, dtype=torch.float64)
        self._values += channels.shape[1]

    def means(self) -> tuple[float, ...]:
        """Return one mean per channel; at least one input must have been added."""
        return tuple(map(shortened, (self._sum / self._values).tolist()))
