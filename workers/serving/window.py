"""What the layers of a deployed map saw over some time. Windows merge by addition, in any order."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Self

from workers.errors import WindowError

#: Bins of a histogram: 64 of equal width over the calibrated range, between one below and one above it.
BINS = 1 + 64 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWindow:
    """What one layer saw. A dynamic layer has only ``requests``, ``low`` and ``high``.

    Raises:
        WindowError: if counts contradict each other.
    """

    #: Requests that the layer answered.
    requests: int = 0
    #: Requests in which an input took the first code of the calibrated range, and the last.
    flagged_low: int = 0
    flagged_high: int = 0
    #: Requests whose inputs were compared with the range before rounding, and those with an input outside it.
    sampled: int = 0
    outside: int = 0
    #: Inputs of the sampled requests, and those outside the range.
    values: int = 0
    clipped: int = 0
    #: Least and greatest input seen; None if none was.
    low: float | None = None
    high: float | None = None
    #: Inputs of the sampled requests by bin, ``BINS`` counts; empty if none was sampled.
    histogram: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in _COUNTS} | dict(enumerate(self.histogram))
        for name, count in counts.items():
            _require(
                type(count) is int and count >= 0, f"{name} must be a whole number of at least 0, but is {count!r}"
            )
        for part, whole in _PARTS:
            least, most = getattr(self, part), getattr(self, whole)
            _require(least <= most, f"{part} must be at most {whole}, but {least} > {most}")
        _require(
            len(self.histogram) in (0, BINS) and sum(self.histogram) == self.values,
            f"histogram must have no or {BINS} counts with the sum of values, {self.values}, but has "
            f"{len(self.histogram)} with the sum {sum(self.histogram)}",
        )
        ends = (self.low, self.high)
        _require(
            ends == (None, None) or (all(map(_is_finite, ends)) and self.low <= self.high),  # type: ignore[operator]
            f"low and high must be finite numbers in this order, or both None, but are {self.low!r} and {self.high!r}",
        )

    def __add__(self, other: "LayerWindow") -> "LayerWindow":
        """Return what both windows saw."""
        if not (self.histogram and other.histogram):
            histogram = self.histogram or other.histogram
        else:
            histogram = tuple(mine + theirs for mine, theirs in zip(self.histogram, other.histogram, strict=True))
        return LayerWindow(
            **{name: getattr(self, name) + getattr(other, name) for name in _COUNTS},
            low=min(_present(self.low, other.low), default=None),
            high=max(_present(self.high, other.high), default=None),
            histogram=histogram,
        )


#: Fields that add up.
_COUNTS = ("requests", "flagged_low", "flagged_high", "sampled", "outside", "values", "clipped")
#: Field -> the field that it counts a part of.
_PARTS = (
    ("flagged_low", "requests"), ("flagged_high", "requests"), ("sampled", "requests"), ("outside", "sampled"),
    ("clipped", "values"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What the layers of one map saw under one revision of a deployment.

    Raises:
        WindowError: if it ends before it starts, a time has no time zone, or a count is negative.
    """

    #: Revision of the deployment, from 1 on.
    revision: int
    #: Key of the map.
    map_key: str
    #: First and last time of a request.
    start: datetime
    end: datetime
    #: Requests answered by the map.
    requests: int
    #: Layer name -> what it saw.
    layers: Mapping[str, LayerWindow] = field(default_factory=lambda: MappingProxyType({}))
    #: Requests of windows that were dropped before they could be sent.
    dropped: int = 0

    def __post_init__(self) -> None:
        for name, least in (("revision", 1), ("requests", 0), ("dropped", 0)):
            count = getattr(self, name)
            _require(
                type(count) is int and count >= least,
                f"{name} must be a whole number of at least {least}, but is {count!r}",
            )
        _require(isinstance(self.map_key, str), f"map_key must be text, but is {self.map_key!r}")
        aware = all(time.tzinfo is not None for time in (self.start, self.end))
        _require(aware, f"start and end must be times with a time zone, but are {self.start!r} and {self.end!r}")
        _require(self.start <= self.end, f"start must not be after end, but {self.start} > {self.end}")

    def __add__(self, other: "Window") -> "Window":
        """Return what both windows saw.

        Raises:
            WindowError: if they are of different revisions or maps.
        """
        mine, theirs = (self.revision, self.map_key), (other.revision, other.map_key)
        _require(
            mine == theirs,
            f"only windows of one revision and map can be added, but these are {mine} and {theirs}; group them first",
        )
        names = self.layers.keys() | other.layers.keys()
        return Window(
            revision=self.revision,
            map_key=self.map_key,
            start=min(self.start, other.start),
            end=max(self.end, other.end),
            requests=self.requests + other.requests,
            layers={n: self.layers.get(n, LayerWindow()) + other.layers.get(n, LayerWindow()) for n in names},
            dropped=self.dropped + other.dropped,
        )

    def to_json(self) -> str:
        """Return the window as one line of JSON without what has its default."""
        document = _given(self) | {"start": self.start.isoformat(), "end": self.end.isoformat()}
        document["layers"] = {name: _given(layer) for name, layer in self.layers.items()}
        return json.dumps(document, separators=(",", ":"), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return the window that ``to_json`` wrote.

        Raises:
            WindowError: if the text is not a window.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise WindowError(f"a window must be JSON: {error}") from None
        _check_keys(cls, document, "window")
        layers = document.get("layers", {})
        _require(isinstance(layers, dict), f"layers must be a mapping of names to layers, but is {layers!r}")
        times = {}
        for name in ("start", "end"):
            try:
                times[name] = datetime.fromisoformat(document[name])
            except (TypeError, ValueError):
                raise WindowError(f"{name} must be a time in ISO 8601, but is {document[name]!r}") from None
        return cls(**document | times | {"layers": {name: _layer(name, layer) for name, layer in layers.items()}})


def _layer(name: str, document: Any) -> LayerWindow:
    _check_keys(LayerWindow, document, f"layer {name!r}")
    histogram = document.get("histogram", [])
    _require(isinstance(histogram, list), f"histogram of layer {name!r} must be a list, but is {histogram!r}")
    try:
        return LayerWindow(**document | {"histogram": tuple(histogram)})
    except WindowError as error:
        raise WindowError(f"layer {name!r}: {error}") from None


def _check_keys(kind: type, document: Any, what: str) -> None:
    """Require a mapping with the fields of ``kind``, all that have no default among them."""
    _require(isinstance(document, dict), f"{what} must be a mapping of fields, but is {document!r}")
    fields = dataclasses.fields(kind)
    known = {each.name for each in fields}
    needed = {each.name for each in fields if each.default is each.default_factory is dataclasses.MISSING}
    wrong, missing = sorted(document.keys() - known), sorted(needed - document.keys())
    _require(not wrong, f"{what} has the unknown field {(wrong or [''])[0]!r}; known: {', '.join(sorted(known))}")
    _require(not missing, f"{what} needs {', '.join(missing)}")


def _given(record: LayerWindow | Window) -> dict[str, Any]:
    found = {each.name: (getattr(record, each.name), each.default) for each in dataclasses.fields(record)}
    return {name: value for name, (value, default) in found.items() if value != default}


def _present(*ends: float | None) -> Iterable[float]:
    return [end for end in ends if end is not None]


def _is_finite(number: Any) -> bool:
    return type(number) in (int, float) and math.isfinite(number)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise WindowError(message)
