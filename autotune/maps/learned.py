"""Puts what was learned for a recovered map into a model."""

from collections.abc import Callable

from torch import nn

from autotune.maps.map_file import MapFile
from search_spaces.errors import MapError
from workers.recovery.learned import LearnedLayer, decoded, install


def learned_layers(file: MapFile) -> dict[str, LearnedLayer]:
    """Return layer name -> what was learned for a map; empty if it was not recovered.

    Raises:
        MapError: if the learned weights are not here, cannot be read, or are those of other layers.
    """
    if file.recovery is None:
        return {}
    found = decoded(file.learned)
    other = sorted(found.keys() ^ set(file.recovery.layers))
    if other:
        raise MapError(
            f"the map and its learned weights name different layers, {other[0]!r} among them; export the map again"
        )
    return found


def install_learned(model: nn.Module, file: MapFile) -> Callable[[], None]:
    """Replace layers of the full-precision model of a map, in place, with what was learned for it.

    Returns:
        a function that puts the model's own layers back.

    Raises:
        MapError: see ``learned_layers``. Also if the learned weights are for another model.
    """
    return install(model, file.quantization_map(), learned_layers(file))
