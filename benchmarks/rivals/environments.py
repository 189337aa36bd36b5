"""Python environments of the rivals: ours, and on top of it what a rival requires."""

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

#: The hook by which an environment sees ours; ``addsitedir`` also reads the hooks of editable installations.
_HOOK = "inherited.pth"


def python(name: str, packages: Sequence[str], folder: Path) -> Path:
    """Return the interpreter of an environment with some packages; the first call creates it.

    The environment inherits ours, so that PyTorch is not installed again. Where a package requires another version of
    something, that version goes into the environment and hides ours.

    Args:
        name: of the environment.
        packages: requirements; without any, our own interpreter is returned.
        folder: of all environments.

    Raises:
        SystemExit: if pip cannot install them.
    """
    if not packages:
        return Path(sys.executable)
    target = folder / name
    interpreter = target / "bin" / "python"
    installed = target / "installed.txt"
    wanted = "\n".join(packages)
    if installed.exists() and installed.read_text(encoding="utf-8") == wanted:
        return interpreter
    venv.create(target, with_pip=False, clear=True)
    (hooks,) = target.glob("lib/*/site-packages")
    hook = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (hooks / _HOOK).write_text(hook, encoding="utf-8")
    command = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # Any other version of PyTorch would bring gigabytes of libraries for GPUs.
    if subprocess.run([*command, *packages, f"torch=={metadata.version('torch')}"], check=False).returncode != 0:
        raise SystemExit(f"pip cannot install {' '.join(packages)}; the lines above say why")
    installed.write_text(wanted, encoding="utf-8")
    return interpreter
