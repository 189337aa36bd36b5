"""Secrets by reference: ``${secret:NAME}`` in a task's parameters is replaced only where the task is built."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.errors import TaskError

#: Prefix of the environment variable that holds a secret.
_VARIABLE = "AUTOTUNE_SECRET_"
#: Environment variable that names a folder with one file per secret.
_FOLDER = "AUTOTUNE_SECRETS"
_REFERENCE = re.compile(r"\$\{secret:([^}]*)\}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
#: Keys whose values are secrets, recognised by their last words.
_SECRET_KEYS = re.compile(
    r"(^|[_\W])(password|passwd|passphrase|secret|token|credentials?|(api|access|private|secret)_?key)$", re.IGNORECASE
)


def problems(parameters: object, key: str = "") -> Iterator[str]:
    """Yield a message for each misused secret in a task's parameters; messages never contain the values."""
    if isinstance(parameters, dict):
        for name, value in parameters.items():
            yield from problems(value, str(name))
    elif isinstance(parameters, list):
        for value in parameters:
            yield from problems(value, key)
    elif isinstance(parameters, str) and "${secret:" in parameters:
        names = _REFERENCE.findall(parameters)
        if parameters.count("${secret:") != len(names) or not all(map(_NAME.fullmatch, names)):
            yield f"{key}: a reference to a secret must be ${{secret:NAME}}, with letters, digits and _ in the name"
    elif not isinstance(parameters, bool | None) and _SECRET_KEYS.search(_words(key)):
        yield (
            f"{key}: must not contain a secret, because job files are stored and shown; write ${{secret:NAME}} and set "
            f"{_VARIABLE}NAME where the workers run"
        )


def resolved(parameters: Any) -> Any:
    """Return parameters with each reference replaced by its secret.

    Raises:
        TaskError: if this worker does not have a secret.
    """
    if isinstance(parameters, dict):
        return {name: resolved(value) for name, value in parameters.items()}
    if isinstance(parameters, list):
        return [resolved(value) for value in parameters]
    if isinstance(parameters, str):
        return _REFERENCE.sub(lambda match: _secret(match[1]), parameters)
    return parameters


def _secret(name: str) -> str:
    folder = os.environ.get(_FOLDER)
    value = os.environ.get(f"{_VARIABLE}{name}")
    # Check the name here as well, because it becomes part of a path.
    if value is None and folder and _NAME.fullmatch(name):
        file = Path(folder, name)
        value = file.read_text(encoding="utf-8").rstrip("\r\n") if file.is_file() else None
    if value is None:
        raise TaskError(
            f"the secret {name!r} is not known to this worker; set {_VARIABLE}{name} in its environment, "
            f"or put a file {name!r} into the folder that {_FOLDER} names"
        )
    return value


def _words(key: str) -> str:
    """Return a camelCase key with underscores between its words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)
