"""The rules of the house that no linter knows."""

import ast
import functools
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("dashboard", "autotune", "workers", "search_spaces")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

#: Library -> the only files (or, ending in a slash, folders) that import it.
DOORS = {
    "optuna": ("autotune/search/study.py", "autotune/search/samplers/", "autotune/reports/optuna_study.py"),
    "ray": (
        "workers/pools/ray_pool.py",
        "workers/pools/ray_nodes.py",
        "workers/pools/ray_progress.py",
        "workers/pools/ray_errors.py",
    ),
    "sqlalchemy": ("autotune/store/",),
    "alembic": ("autotune/store/",),
    "streamlit": ("dashboard/",),
    "plotly": ("dashboard/",),
    "typer": ("autotune/cli/",),
    "fastapi": ("autotune/api/",),
    "starlette": ("autotune/api/",),
    "uvicorn": ("autotune/api/",),
    "prometheus_client": ("autotune/api/",),
    "httpx2": ("autotune/client/http_service.py",),
    "onnx": (
        "workers/backends/onnx/graph.py",
        "workers/backends/onnx/builder.py",
        "workers/backends/onnx/neighbours.py",
    ),
    "onnxruntime": ("workers/backends/onnx/session.py", "workers/backends/onnx/deployed.py"),
    "openvino": ("workers/backends/openvino/session.py",),
    "torchao": ("workers/backends/torchao/layers.py", "autotune/exporters/torchao_layers.py"),
    "mlflow": ("autotune/reports/mlflow_runs.py",),
    "modelopt": ("autotune/exporters/configurations/modelopt.py",),
    "llmcompressor": ("autotune/exporters/configurations/llmcompressor.py",),
    "neural_compressor": ("autotune/exporters/configurations/neuralcompressor.py",),
    "nncf": ("autotune/exporters/configurations/nncf.py",),
    "compressed_tensors": ("autotune/exporters/compressed_layers.py",),
    "transformers": (
        "workers/tasks/text/minilm_lee.py",
        "workers/tasks/text/causal_lm.py",
        "workers/tasks/text/models.py",
        "workers/tasks/checkpoints.py",
        "workers/tasks/images/models.py",
        "workers/tasks/diffusion/pipelines.py",
        "workers/tasks/speech/models.py",
        "workers/tasks/speech/generation.py",
        "autotune/exporters/huggingface_exporter.py",
        "autotune/exporters/pretrained.py",
    ),
    "timm": ("workers/tasks/images/timm_models.py",),
    "torchvision": ("workers/tasks/images/torchvision_models.py",),
    "diffusers": ("workers/tasks/diffusion/denoisers.py", "workers/tasks/diffusion/pipelines.py"),
    "PIL": ("workers/tasks/images/folder.py",),
    "jiwer": ("workers/tasks/speech/seq2seq.py",),
    "sklearn": ("workers/tasks/images/digits.py",),
}
#: The only module that creates PyTorch's quantized tensors, and names of functions and types that do.
QUANTIZED_TENSORS = "workers/backends/cpu/fbgemm.py"
OF_QUANTIZED_TENSORS = re.compile(
    r"quantize_per_(tensor|channel)(_dynamic)?|_make_per_(tensor|channel)_quantized_tensor"
    r"|_empty_(per_channel_)?affine_quantized|quantize_dynamic|qu?int\d+(x\d)?"
    r"|(linear|embedding_bag|conv[123]d|conv_transpose[123]d)_prepack"
)
HEAVY = (
    "torch",
    "ray",
    "optuna",
    "streamlit",
    "transformers",
    "fastapi",
    "uvicorn",
    "httpx2",
    "onnx",
    "onnxruntime",
    "openvino",
    "torchao",
    "compressed_tensors",
    "mlflow",
)
#: What command line, dashboard and readers of maps import on every start.
LIGHT = (
    "search_spaces.quantization_map",
    "workers.measurement",
    "workers.setup",
    "workers.tasks",
    "autotune",
    "autotune.metrics.catalog",
    "autotune.jobs.spec",
    "autotune.store.base",
    "autotune.jobs.records",
    "autotune.client.connect",
    "autotune.cli.main",
    "autotune.exporters",
    "dashboard",
)

LONGEST_FUNCTION, LONGEST_CLASS, MEDIAN_FUNCTION = 60, 250, 10


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported(path: Path) -> set[str]:
    """Top-level names a module imports, wherever in the module."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def repository_files() -> list[Path]:
    """What is or would be committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def functions() -> Iterator[tuple[str, int]]:
    """Every function with the lines of its body, docstring excluded."""
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                yield f"{name_of(path)}:{node.lineno} {node.name}", lines


@pytest.mark.parametrize("package", PACKAGES)
def test_import_name_belongs_to_this_distribution_alone(package: str) -> None:
    # Another distribution that ships the name overwrites our files without an error.
    assert set(metadata.packages_distributions()[package]) == {"quant-autotune"}


@pytest.mark.parametrize("package", PACKAGES)
def test_import_name_leads_into_this_checkout(package: str) -> None:
    code = f"import {package}; print({package}.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()) == ROOT / package / "__init__.py"


@pytest.mark.parametrize("library", DOORS)
def test_library_is_imported_behind_its_door_only(library: str) -> None:
    importers = [name_of(path) for path in MODULES if library in imported(path)]
    assert importers, f"nothing imports {library}; take its door away"
    strays = [name for name in importers if not name.startswith(DOORS[library])]
    assert strays == [], f"{library} may be imported by {DOORS[library]} only"


def test_one_module_alone_creates_quantized_tensors() -> None:
    # PyTorch will remove them.
    creating = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and OF_QUANTIZED_TENSORS.fullmatch(node.attr)
    }
    assert creating == {QUANTIZED_TENSORS}


@pytest.mark.parametrize("module", LIGHT)
def test_light_module_brings_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_imports_run_in_one_direction() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_hides_no_module_of_the_standard_library(path: Path) -> None:
    # Ray and Streamlit put the folder of a script on sys.path, where such a name would win.
    assert path.stem not in sys.stdlib_module_names


def test_functions_are_short() -> None:
    lengths = dict(functions())
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}
    assert statistics.median(lengths.values()) <= MEDIAN_FUNCTION


def test_classes_are_short() -> None:
    lengths = {
        f"{name_of(path)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_CLASS} == {}


def test_changelog_starts_with_the_present_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(r"(?<![\w.~-])/(home|Users|root)/[\w.]", id="home"),
        pytest.param(r"\b(pypi|npmjs|pythonhosted|download\.pytorch|deb\.debian)\.(org|com)\b", id="package-index"),
        pytest.param(r"\b(docker|ghcr|quay)\.io/", id="image-registry"),
        pytest.param(r"--(extra-)?index-url[ =]\w", id="index-option"),
    ],
)
def test_no_file_names_a_home_folder_or_a_registry(pattern: str) -> None:
    found = [
        f"{name_of(path)}:{number}"
        for path in repository_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert found == []
