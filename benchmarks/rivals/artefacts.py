"""What a rival leaves in its folder, and how each kind of artefact is loaded as a model that the task can call."""

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.rivals.subject import Subject
from workers.backends.onnx.session import OnnxModule, open_session
from workers.backends.onnx.signature import in_form
from workers.device.threads import OtherRuntime

#: File name in a rival's folder.
ARTEFACT = "artefact.json"


class Kind(enum.StrEnum):
    """How an artefact is deployed."""

    #: An ONNX graph, in ONNX Runtime.
    ONNX = "onnx"
    #: OpenVINO's own format, in OpenVINO.
    OPENVINO = "openvino"
    #: An exported program, compiled by inductor.
    PROGRAM = "program"
    #: A recipe of ``torch_recipes`` that is applied to the model again, eagerly or compiled by inductor.
    EAGER = "eager"
    COMPILED = "compiled"
    #: A map of ours, in the format of its own backend.
    MAP = "map"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A quantized model in a folder."""

    name: str
    kind: Kind
    #: File or folder in the rival's folder.
    file: str
    #: Bytes that deploying it takes on disk.
    bytes: int
    #: Properties with which its runtime loads it, or the name of its recipe.
    options: Mapping[str, str] = field(default_factory=dict)
    #: Library -> version that made it.
    versions: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the description into the rival's folder."""
        (folder / ARTEFACT).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Artefact":
        """Return the description in a rival's folder."""
        fields: dict[str, Any] = json.loads((folder / ARTEFACT).read_text(encoding="utf-8"))
        return cls(**fields | {"kind": Kind(fields["kind"])})


def bytes_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


class Positional(nn.Module):
    """Something that takes and returns tensors by position, called like the model that it stands for."""

    def __init__(self, run: Callable[..., Sequence[torch.Tensor]], subject: Subject) -> None:
        super().__init__()
        self._run = run
        self._arguments = tuple(subject.calls.varying)
        self._names, self._form = subject.flat.output_names, subject.flat.form

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs in the form of the model's."""
        given = (args[key] if isinstance(key, int) else kwargs[key] for key in self._arguments)
        return in_form(self._form, dict(zip(self._names, self._run(*given), strict=True)))


class Elsewhere(Positional, OtherRuntime):
    """The same, computed by another runtime."""


def openvino_model(compiled: Any, subject: Subject) -> Elsewhere:
    """Return a compiled model of OpenVINO in the subject's place."""
    request = compiled.create_infer_request()

    def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
        results = request.infer([tensor.numpy() for tensor in tensors], share_inputs=True, share_outputs=False)
        return [torch.from_numpy(array) for array in results.values()]

    return Elsewhere(run, subject)


def compiled_openvino(model: Any, options: Mapping[str, str]) -> Any:
    """Return a model of OpenVINO, or that in a file, compiled for the least latency with as many threads as PyTorch."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    return openvino.Core().compile_model(model, "CPU", settings | options)


def onnx_model(graph: Path | bytes, subject: Subject) -> OnnxModule:
    """Return a session of ONNX Runtime in the subject's place."""
    return OnnxModule(open_session(graph), tuple(subject.calls.varying), subject.flat.form)


def load(artefact: Artefact, folder: Path, subject: Subject) -> nn.Module:
    """Return an artefact as a model that the subject's task can call; ``folder`` is the rival's.

    Raises:
        Exception: whatever the runtime raises if it cannot load the artefact.
    """
    path = folder / artefact.file
    match artefact.kind:
        case Kind.ONNX:
            return onnx_model(path, subject)
        case Kind.OPENVINO:
            return openvino_model(compiled_openvino(str(path), artefact.options), subject)
        case Kind.PROGRAM:
            import torchao.quantization.pt2e  # noqa: F401 - registers the operators of the program

            return Positional(torch.compile(torch.export.load(path).module()), subject)
        case Kind.EAGER | Kind.COMPILED:
            from benchmarks.rivals.torch_recipes import RECIPES

            model = RECIPES[artefact.options["recipe"]](subject.fresh_model())
            return model if artefact.kind is Kind.EAGER else torch.compile(model)
        case Kind.MAP:
            return _ours(path, subject)


def _ours(path: Path, subject: Subject) -> nn.Module:
    from autotune.exporters import build_exporter
    from autotune.exporters.export import read_source
    from autotune.exporters.manifest import MAP, Manifest
    from autotune.maps import map_file
    from autotune.maps.apply import read_map

    if path.is_file():
        return read_map(path).apply(subject.fresh_model())
    manifest = Manifest.read(path)
    source = read_source(map_file.read(path / MAP))
    return build_exporter(manifest.format).load(path, manifest.details, source.build_model).eval()
