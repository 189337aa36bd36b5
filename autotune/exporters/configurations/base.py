"""Configurations for other quantization libraries: written by us, validated by the library, never run by us."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from autotune.errors import ExportError
from autotune.exporters import libraries
from autotune.exporters.base import Source
from search_spaces.choice import FULL_PRECISION, LayerChoice
from search_spaces.layer import Layer
from search_spaces.quantization_map import QuantizationMap

#: Name of the file that explains each configuration and how it was checked.
NOTE = "NOTE.txt"


class Configuration(ABC):
    """An exporter whose artefact is a recipe: the layers' choices in the format of one library."""

    name: str
    #: Name of the file in the folder.
    file: str
    #: Distribution name of the library that reads the file, and the version whose rules the file follows.
    library: str
    written_for: str
    #: Choices, apart from full precision, that both the library and our kernels support.
    choices: tuple[str, ...]
    #: Lines of Python that use the file.
    usage: str
    #: How the library differs from our backend, for people.
    differs: str
    libraries: tuple[str, ...] = ()
    untimed: str | None = "a configuration holds no model"
    as_built = True

    @property
    def rounds_anew(self) -> Collection[str]:
        """All its choices: the library rounds the weights of the model itself."""
        return self.choices

    @property
    def rounding(self) -> str:
        """How the library's outputs may differ from our backend's."""
        return f"not run; {self.differs}"

    def refuses(self, layer: Layer, choice: LayerChoice) -> str | None:
        if choice == FULL_PRECISION:
            return None
        if choice.name not in self.choices:
            return f"our kernels and {self.library} share {', '.join(self.choices)}, but no {choice.name}"
        return self.refuses_layer(layer, choice) or layer.frozen_reason

    @abstractmethod
    def refuses_layer(self, layer: Layer, choice: LayerChoice) -> str | None:
        """Return why ``layer`` cannot take one of ``choices``, or None if it can."""

    def refuses_model(self, model: nn.Module) -> str | None:
        return None

    @abstractmethod
    def text(self, quantization: QuantizationMap) -> str:
        """Return the file's content for a map."""

    @abstractmethod
    def validate(self, text: str) -> None:
        """Parse ``text`` with the library, which raises its own exception if it rejects the configuration."""

    def write(self, source: Source, folder: Path) -> Mapping[str, Any]:
        text = self.text(source.file.quantization_map())
        version = self._validated(text)
        Path(folder, self.file).write_text(text, encoding="utf-8")
        Path(folder, NOTE).write_text(self._note(version), encoding="utf-8")
        return {"validated_with": version}

    def load(self, folder: Path, details: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
        """Raise ``ExportError``, because there is no model to load."""
        raise ExportError(
            f"the format {self.name} is a configuration for {self.library} and contains no model to load. "
            f"Quantize with {self.library}, as {NOTE} shows, and evaluate the result"
        )

    def _validated(self, text: str) -> str | None:
        """Return the version of the library that accepts ``text``, or None if the library is not installed."""
        try:
            version = metadata.version(self.library)
        except metadata.PackageNotFoundError:
            return None
        with libraries():
            try:
                self.validate(text)
            except ImportError:
                raise
            except Exception as error:  # every library raises its own exceptions
                raise ExportError(f"{self.library} {version} does not accept the configuration: {error}") from None
        return version

    def _note(self, version: str | None) -> str:
        checked = (
            f"{self.library} {version} accepted {self.file} when it was written: validated, not run."
            if version
            else f"{self.library} is not installed here. {self.file} follows the rules of {self.written_for} "
            "and was neither validated nor run; install the library and export again to validate it."
        )
        differs = f"{self.differs[0].upper()}{self.differs[1:]}."
        return f"{checked}\n\n{differs}\nMeasured figures and calibrated ranges are in map.json.\n\n{self.usage}\n"


def header(configuration: Configuration) -> str:
    """Return the first lines of a configuration in a format that has comments."""
    return f"# For {configuration.library}. Not run by autotune; see {NOTE} for its validation.\n"
