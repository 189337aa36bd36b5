"""The base of every error a user can act on.

Exception hierarchy:

* AutotuneError
  x ChoiceError            an illegal or unknown layer choice
  x SpaceError             rules that do not fit the model's layers
  x MapError               a map file that cannot be read or does not fit the model
  + workers.errors         tasks, backends, measurement
  + autotune.errors        job files, store, study, export
"""

import difflib
from collections.abc import Iterable


class AutotuneError(Exception):
    """An error the user can fix; its message gives the rule, the offending value and the way out."""


class ChoiceError(AutotuneError):
    """A layer choice that does not exist or cannot exist."""


class SpaceError(AutotuneError):
    """Search rules that do not fit the layers of the model."""


class MapError(AutotuneError):
    """A quantization map that cannot be read, or belongs to another model."""


def unknown(noun: str, name: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown name: the name, the closest known one, and all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {noun} {name!r}{hint} Known: {', '.join(names) or 'none'}"
