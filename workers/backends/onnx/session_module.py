"""A session of a traced graph that is called like the model."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from workers.backends.onnx.signature import in_form
from workers.device.threads import OtherRuntime

S = TypeVar("S")
Array = npt.NDArray[np.generic]


class SessionModule(OtherRuntime, Generic[S]):
    """A session that is called like the model it was traced from."""

    def __init__(self, session: S, arguments: Sequence[int | str], form: str) -> None:
        """Take a session and how the model is called; see ``Traced``."""
        super().__init__()
        #: The session that runs; it may be replaced by another session of the same model.
        self.session = session
        self._arguments = arguments
        self._form = form

    @abstractmethod
    def _compute(self, inputs: Sequence[Array]) -> Mapping[str, Array]:
        """Return the session's outputs by name, in arrays of their own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs in the same form as the original model."""
        given = (args[key] if isinstance(key, int) else kwargs[key] for key in self._arguments)
        results = self._compute([tensor.numpy() for tensor in given])
        return in_form(self._form, {name: torch.from_numpy(result) for name, result in results.items()})
