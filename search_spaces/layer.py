"""A quantizable layer of a model, as plain data."""

import enum
from dataclasses import dataclass


class LayerKind(enum.StrEnum):
    """Type of a quantizable layer."""

    LINEAR = "linear"
    CONV1D = "conv1d"
    CONV2D = "conv2d"
    CONV_TRANSPOSE1D = "conv_transpose1d"
    CONV_TRANSPOSE2D = "conv_transpose2d"
    EMBEDDING = "embedding"
    EMBEDDING_BAG = "embedding_bag"
    LSTM = "lstm"
    GRU = "gru"

    @property
    def is_product(self) -> bool:
        """Whether the kind is linear or a convolution that is not transposed."""
        return self in (LayerKind.LINEAR, LayerKind.CONV1D, LayerKind.CONV2D)

    @property
    def is_transposed(self) -> bool:
        """Whether the kind is a transposed convolution."""
        return self in (LayerKind.CONV_TRANSPOSE1D, LayerKind.CONV_TRANSPOSE2D)

    @property
    def looks_up(self) -> bool:
        """Whether layers of the kind look up rows by index, so that they have no activation to quantize."""
        return self in (LayerKind.EMBEDDING, LayerKind.EMBEDDING_BAG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One quantizable layer, found by running the model on example batches."""

    #: Fully qualified module name, as in ``model.named_modules()``.
    name: str
    #: Type of the layer.
    kind: LayerKind
    #: Shape of the weight tensor, for example ``(out_features, in_features)``. Transposed convolutions have
    #: ``(in channels, out channels / groups, ...)``, LSTM and GRU
    #: ``(layers, directions, gates x hidden features, input features)``.
    weight_shape: tuple[int, ...]
    #: Whether the layer adds a bias.
    has_bias: bool
    #: Bytes of weight and bias in the model's own precision.
    weight_bytes: int
    #: Shape of the first input seen; empty if the layer never ran.
    input_shape: tuple[int, ...]
    #: Floating-point operations (two per multiply-accumulate) over all calls on the first example batch that runs the
    #: layer; 0 for embeddings.
    flops: int
    #: Number of calls on that batch.
    calls: int
    #: Position in execution order, from 0.
    order: int
    #: Fusion group. Its layers share one choice, because runtimes that fuse them fail otherwise.
    group: str
    #: Input shapes in the passes whose latency is measured, one per workload and batch size, without duplicates; empty
    #: if unknown or if the layer does not run there.
    latency_shapes: tuple[tuple[int, ...], ...] = ()
    #: Groups of a convolution; 1 for all other layers.
    conv_groups: int = 1
    #: Why the layer must stay in full precision on every backend; None if it may be quantized.
    frozen_reason: str | None = None

    @property
    def outputs(self) -> int:
        """Output features or channels of the layer; rows of an embedding."""
        return self.weight_shape[1] * self.conv_groups if self.kind.is_transposed else self.weight_shape[0]
