"""A clear error if another package hides one that comes with this one under a common name."""

import importlib.util
from pathlib import Path

_NAMES = ("search_spaces", "workers", "dashboard")


def check() -> None:
    """Check that Python finds the packages that were installed with this one.

    Raises:
        ImportError: if it finds another package or module of that name first, or none.
    """
    here = Path(__file__).parents[1]
    for name in _NAMES:
        spec = importlib.util.find_spec(name)
        where = None if spec is None else next(iter(spec.submodule_search_locations or ()), spec.origin)
        if where is None:
            raise ImportError(f"quant-autotune lacks its package {name!r}; install it again")
        if not Path(where).samefile(here / name):
            raise ImportError(
                f"quant-autotune needs its own package {name!r} in {str(here)!r}, but Python finds {where!r} first; "
                "rename that one, or run Python from another folder",
                name=name,
                path=where,
            )
