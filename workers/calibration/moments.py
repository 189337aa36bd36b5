"""Second moments of a layer's inputs, from one pass that never holds the full moment matrix."""

import base64
import functools

import torch

from search_spaces.quantization_map import SecondMoments
from workers.calibration.significant_digits import shortened

#: Directions kept in addition to the diagonal; each one adds a byte per channel to the map file.
_RANK = 32
#: Random directions of the sketch; the wider the sketch, the closer its best directions are to the true ones.
_SKETCH = 4 * _RANK
#: Eigenvalues below this share of the largest are rounding errors of fp32 products.
_NOISE = 16 * torch.finfo(torch.float32).eps
#: Largest integer of a stored direction.
_LARGEST = 127


class MomentSketch:
    """Second moments of a layer's inputs, from their products with a few random directions.

    Of the ``channels x channels`` matrix it holds ``_SKETCH`` columns: the Nyström sketch of Tropp, Yurtsever,
    Udell and Cevher, arXiv:1706.05736. The sketch is exact for inputs with at most ``_SKETCH`` channels.
    """

    def __init__(self, channels: int) -> None:
        #: Inputs seen.
        self.rows = 0
        self._squares = torch.zeros(channels, dtype=torch.float64)
        self._test = _directions(channels)
        self._products = torch.zeros(self._test.shape, dtype=torch.float64)

    def add(self, x: torch.Tensor) -> None:
        """Add inputs of shape ``(..., channels)``, fp32."""
        rows = x.reshape(-1, x.shape[-1])
        self._squares += rows.square().sum(dim=0, dtype=torch.float64)
        self._products += rows.T @ (rows @ self._test)
        self.rows += len(rows)

    def moments(self) -> SecondMoments:
        """Return the second moments; at least one input must have been added."""
        directions = self._largest_directions() / self.rows**0.5
        scales = [shortened(float(direction.abs().max()) / _LARGEST) for direction in directions]
        kept = [(scale, direction) for scale, direction in zip(scales, directions, strict=True) if scale > 0.0]
        integers = [(direction / scale).round().clamp(-_LARGEST, _LARGEST).to(torch.int8) for scale, direction in kept]
        return SecondMoments(
            squares=tuple(map(shortened, (self._squares / self.rows).tolist())),
            scales=tuple(scale for scale, _ in kept),
            basis=base64.b64encode(b"".join(row.numpy().tobytes() for row in integers)).decode(),
        )

    def _largest_directions(self) -> torch.Tensor:
        """Return ``sqrt(value) * vector`` for the largest eigenvalues, shape ``(rank, channels)``; algorithm 3."""
        core = self._test.double().T @ self._products
        values, vectors = torch.linalg.eigh((core + core.T) / 2.0)
        certain = values > _NOISE * values[-1]
        half = self._products @ vectors[:, certain] / values[certain].sqrt()
        vectors, lengths, _ = torch.linalg.svd(half, full_matrices=False)
        largest: torch.Tensor = (vectors * lengths).T[:_RANK]
        return largest


@functools.lru_cache(maxsize=16)
def _directions(channels: int) -> torch.Tensor:
    """Return orthonormal random directions, the same ones for all layers; shape ``(channels, directions)``, fp32."""
    if channels <= _SKETCH:
        return torch.eye(channels)
    drawn = torch.randn(channels, _SKETCH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions: torch.Tensor = torch.linalg.qr(drawn)[0].float()
    return directions
