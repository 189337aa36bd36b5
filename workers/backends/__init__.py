"""Backends: run layers with their choices, on this hardware's own kernels or in another runtime."""

import functools
from collections.abc import Callable

from search_spaces.errors import unknown
from workers.backends.base import Backend
from workers.backends.cpu.backend import CpuBackend
from workers.backends.onnx.backend import OnnxRuntimeBackend
from workers.backends.openvino.backend import OpenVinoBackend
from workers.backends.torchao.backend import TorchAoBackend
from workers.errors import BackendError

#: Name -> backend, best first: ``auto`` selects the first available one. Backends for GPUs come last until they have
#: been tested on a GPU.
BACKENDS: dict[str, Callable[[], Backend]] = {
    "cpu": CpuBackend,
    "onnxruntime": OnnxRuntimeBackend,
    "openvino": OpenVinoBackend,
    "torchao": TorchAoBackend,
    "torchao-compiled": functools.partial(TorchAoBackend, compiler="inductor"),
}
#: Name in old jobs and maps -> current name.
FORMER_NAMES = {"x86": "cpu"}


def build_backend(name: str) -> Backend:
    """Return the backend called ``name``, or the best available one for ``auto``.

    Raises:
        BackendError: if the name is unknown, or the hardware cannot run it.
    """
    name = FORMER_NAMES.get(name, name)
    if name != "auto" and name not in BACKENDS:
        raise BackendError(unknown("backend", name, ["auto", *BACKENDS]))
    refusals = []
    for candidate in BACKENDS if name == "auto" else (name,):
        backend = BACKENDS[candidate]()
        reason = backend.unavailable()
        if reason is None:
            return backend
        refusals.append(f"{candidate}: {reason}")
    if name != "auto":
        raise BackendError(f"the backend {name} {reason}")
    raise BackendError(f"no backend can run on this hardware. {'; '.join(refusals)}")
