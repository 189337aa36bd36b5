"""The Lee corpus as shipped with gensim: news documents, and human ratings of the similarity of each pair.

Source: Lee, Pincombe and Welsh, "An empirical evaluation of models of text document similarity",
CogSci 2005.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.errors import TaskError
from workers.task import Split
from workers.tasks.checks import package_folder

#: Documents that people rated.
RATED = 50
#: Documents of the background corpus, which are not rated.
BACKGROUND = 300
#: Fixed, so that held-out pairs and calibration documents are the same in every job.
_SEED = 2005


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RatedPairs:
    """Pairs of rated documents; three arrays of shape ``(pairs,)``."""

    #: Number of the first document, from 0.
    first: npt.NDArray[np.intp]
    #: Number of the second document, larger than the first.
    second: npt.NDArray[np.intp]
    #: Mean human rating of their similarity, from 0 to 1.
    rating: npt.NDArray[np.float64]


def rated_documents() -> tuple[str, ...]:
    """Return the 50 documents that people rated."""
    return _lines("lee.cor", RATED)


def background_documents() -> tuple[str, ...]:
    """Return the 300 background documents in a fixed random order."""
    documents = _lines("lee_background.cor", BACKGROUND)
    return tuple(documents[index] for index in _permutation(BACKGROUND))


@functools.cache
def rated_pairs(split: Split) -> RatedPairs:
    """Return a random half of the 1,225 pairs of rated documents; the held-out split has the other half."""
    ratings = np.array([line.split() for line in _lines("similarities0-1.txt", RATED)], dtype=np.float64)
    first, second = np.triu_indices(RATED, k=1)
    evaluation, held_out = np.array_split(_permutation(len(first)), 2)
    chosen = held_out if split is Split.HELD_OUT else evaluation
    first, second = first[chosen], second[chosen]
    return RatedPairs(first=first, second=second, rating=ratings[first, second])


def _permutation(count: int) -> npt.NDArray[np.intp]:
    # The legacy generator, because numpy promises that its stream never changes.
    return np.random.RandomState(_SEED).permutation(count)


@functools.cache
def _lines(name: str, count: int) -> tuple[str, ...]:
    path = package_folder("gensim") / "test" / "test_data" / name
    try:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise TaskError(f"cannot read the corpus file {str(path)!r}: {error.strerror}; reinstall gensim") from None
    if len(lines) != count:
        raise TaskError(f"{str(path)!r} must have {count} lines, but has {len(lines)}; reinstall gensim")
    return tuple(lines)
