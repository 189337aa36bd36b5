"""The rivals: each tool's recipes, what they require, and how their artefacts are written."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.models.by_hand import saved_bytes
from benchmarks.rivals.artefacts import Artefact, Kind, bytes_of
from benchmarks.rivals.subject import Subject

#: Writes an artefact into a folder: (subject, recipe, folder) -> file or folder in it, and bytes on disk.
Writer = Callable[[Subject, str, Path], tuple[str, int]]


def write_onnx(subject: Subject, recipe: str, folder: Path) -> tuple[str, int]:
    """Write an ONNX graph by a recipe of ``onnx_recipes``."""
    from benchmarks.rivals import onnx_recipes

    onnx_recipes.RECIPES[recipe](subject, folder)
    return onnx_recipes.MODEL, bytes_of(folder / onnx_recipes.MODEL)


def write_openvino(subject: Subject, recipe: str, folder: Path) -> tuple[str, int]:
    """Write a model of OpenVINO by a recipe of ``openvino_recipes``."""
    import openvino

    from benchmarks.rivals import openvino_recipes

    openvino.save_model(openvino_recipes.RECIPES[recipe](subject), folder / "model.xml", compress_to_fp16=False)
    return "model.xml", sum(bytes_of(folder / name) for name in ("model.xml", "model.bin"))


def write_program(subject: Subject, recipe: str, folder: Path) -> tuple[str, int]:
    """Write an exported program by a recipe of ``program_recipes``."""
    from benchmarks.rivals import program_recipes

    quantized = program_recipes.RECIPES[recipe](subject)
    # The program of a program has the tensors as arguments of their own, not as a list.
    (shapes,) = subject.dynamic_shapes
    program = torch.export.export(quantized, subject.calls.tensors, dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2")
    return "model.pt2", bytes_of(folder / "model.pt2")


def write_state(subject: Subject, recipe: str, folder: Path) -> tuple[str, int]:
    """Apply a recipe of ``torch_recipes``, which is applied again where it is deployed, and count its state's bytes."""
    from benchmarks.rivals import torch_recipes

    quantized = torch_recipes.RECIPES[recipe](subject.fresh_model())
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe}), encoding="utf-8")
    return "recipe.json", saved_bytes(quantized)


#: Packages of the environment in which OpenVINO's models are made.
OPENVINO = ("nncf", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One recipe of one tool."""

    #: Name in tables.
    name: str
    kind: Kind
    write: Writer
    recipe: str
    #: What its process requires beside our own environment, and the name of the environment that has it.
    packages: tuple[str, ...] = ()
    environment: str = ""
    #: Libraries whose versions are recorded.
    libraries: tuple[str, ...] = ("torch",)
    #: Properties with which its runtime loads the artefact.
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return self.name.lower().replace(" ", "-").replace(",", "")

    def make(self, subject: Subject, folder: Path) -> Artefact:
        """Write the artefact and its description into the folder.

        Raises:
            Exception: whatever the tool raises if it cannot quantize the model.
        """
        file, size = self.write(subject, self.recipe, folder)
        return Artefact(
            name=self.name,
            kind=self.kind,
            file=file,
            bytes=size,
            options=self.options,
            versions={library: metadata.version(library) for library in self.libraries},
        )


def _onnx(name: str, recipe: str) -> Peer:
    return Peer(name=name, kind=Kind.ONNX, write=write_onnx, recipe=recipe, libraries=("onnxruntime",))


def _openvino(name: str, recipe: str, **options: str) -> Peer:
    return Peer(
        name=name, kind=Kind.OPENVINO, write=write_openvino, recipe=recipe, packages=OPENVINO,
        environment="nncf", libraries=("nncf", "openvino"), options=options,
    )  # fmt: skip


def _torch(name: str, recipe: str, *, compiled: bool, libraries: tuple[str, ...] = ("torch",)) -> Peer:
    kind = Kind.COMPILED if compiled else Kind.EAGER
    options = {"recipe": recipe}
    return Peer(name=name, kind=kind, write=write_state, recipe=recipe, libraries=libraries, options=options)


def _program(name: str, recipe: str, *, libraries: tuple[str, ...], packages: tuple[str, ...] = ()) -> Peer:
    return Peer(
        name=name, kind=Kind.PROGRAM, write=write_program, recipe=recipe, packages=packages,
        environment="neural-compressor" if packages else "", libraries=libraries,
    )  # fmt: skip


#: All rivals, by tool.
PEERS = (
    _torch("PyTorch compiled, fp32", "fp32", compiled=True),
    _torch("PyTorch compiled, bf16", "bf16", compiled=True),
    _torch("PyTorch quantize_dynamic", "quantize_dynamic", compiled=False),
    _torch("torchao int8 dynamic", "int8 dynamic", compiled=True, libraries=("torch", "torchao")),
    _torch("torchao int8 weights", "int8 weights", compiled=True, libraries=("torch", "torchao")),
    _program("torchao PT2E static", "static", libraries=("torch", "torchao")),
    _program("torchao PT2E dynamic", "dynamic", libraries=("torch", "torchao")),
    _program(
        "Neural Compressor autotune",
        "autotune",
        libraries=("neural_compressor", "torch"),
        packages=("neural-compressor[pt]",),
    ),
    _onnx("ONNX Runtime fp32", "fp32"),
    _onnx("ONNX Runtime dynamic", "dynamic"),
    _onnx("ONNX Runtime dynamic, per channel", "dynamic per channel"),
    _onnx("ONNX Runtime dynamic, transformer fusions", "dynamic fused"),
    _onnx("ONNX Runtime static, min-max", "static min-max"),
    _onnx("ONNX Runtime static, percentile", "static percentile"),
    Peer(
        name="Neural Compressor autotune for ONNX",
        kind=Kind.ONNX,
        write=write_onnx,
        recipe="autotune",
        packages=("onnx-neural-compressor",),
        environment="onnx-neural-compressor",
        libraries=("onnx-neural-compressor", "onnxruntime"),
    ),
    _openvino("OpenVINO fp32", "fp32", INFERENCE_PRECISION_HINT="f32"),
    # OpenVINO itself decides the precision of what is not quantized, for this processor.
    _openvino("OpenVINO as it comes", "fp32"),
    _openvino("NNCF quantize", "quantize"),
    _openvino("NNCF quantize, mixed", "quantize mixed"),
    _openvino("NNCF accuracy control", "accuracy control"),
    _openvino("NNCF accuracy control, mixed", "accuracy control mixed"),
    _openvino("NNCF int8 weights", "compress weights int8"),
    _openvino("NNCF int4 weights", "compress weights int4"),
)
