"""Means of a layer's inputs."""

import torch

from search_spaces.layer import Layer
from workers.calibration.significant_digits import shortened


class ChannelMeans:
    """The mean of each channel of a layer's inputs."""

    def __init__(self, layer: Layer) -> None:
        """Take a linear or convolutional layer."""
        # Channels come last, or before the dimensions that a kernel moves in.
        self._dim = 1 - len(layer.weight_shape)
        self._values = 0
        self._sum: torch.Tensor = torch.zeros(())

    def add(self, x: torch.Tensor) -> None:
        """Take in inputs of shape ``(..., channels)``, or ``(..., channels, *spatial)`` of a convolution; fp32."""
        channels = x.movedim(self._dim, 0).reshape(x.shape[self._dim], -1)
        self._sum = self._sum + channels.sum(dim=1, dtype=torch.float64)
        self._values += channels.shape[1]

    def means(self) -> tuple[float, ...]:
        """Return one mean for each channel of at least one input."""
        return tuple(map(shortened, (self._sum / self._values).tolist()))
