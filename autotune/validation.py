"""External data as pydantic models, with errors that state the field, the rule, the value and the way out."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel

from autotune.errors import FieldError, JobSpecError

#: Most errors reported per job; the message counts the others.
_MAX_ERRORS = 50
#: Most characters shown of a wrong value.
_MAX_VALUE = 80

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], data: object, complaint: str, *, extra: Literal["forbid", "ignore"] = "forbid") -> M:
    """Return external data as a model.

    Raises:
        JobSpecError: if it breaks the model; the message starts with ``complaint`` and lists all errors.
    """
    try:
        return model.model_validate(data, extra=extra)
    except pydantic.ValidationError as error:
        errors = [item for item in error.errors() if not _counts_wrong_items(item)]
        found = [describe(model, item, "job") for item in errors[:_MAX_ERRORS]]
        lines = [f"  {one}" for one in found]
        if len(errors) > _MAX_ERRORS:
            lines.append(f"  and {len(errors) - _MAX_ERRORS} more")
        raise JobSpecError(f"{complaint}:\n" + "\n".join(lines), found) from None


def _counts_wrong_items(error: Mapping[str, Any]) -> bool:
    """Return whether a list is too short only because pydantic does not count items that have errors themselves."""
    return bool(error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"])


def describe(model: type[BaseModel], error: Mapping[str, Any], root: str) -> FieldError:
    """Return a pydantic error with its field path, and a message of rule, value and way out.

    ``root`` is the path of what is wrong with the whole, such as ``job``.
    """
    path = ".".join(str(part) for part in error["loc"]) or root
    return FieldError(path=path, message=_message(model, error))


def _message(model: type[BaseModel], error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        *parents, key = error["loc"]
        known = _keys_at(model, parents)
        near = difflib.get_close_matches(str(key), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
        return f"unknown key{hint}"
    if error["type"] == "missing":
        return "is required"
    if error["type"] == "invalid_key":
        return "unknown key, which is not text; delete it"
    message: str = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    for wordy in ("Input should", "String should"):
        message = message.replace(wordy, "must")
    if error["type"] == "float_parsing":
        message = "must be a number"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        known = _keys_at(model, list(error["loc"]))
        example = f", such as {{{known[0]}: {error['input']}}}" if len(known) == 1 else ""
        message = f"must be a mapping of keys to values{example}"
    if error["input"] is None:
        return f"{message}, but is empty"
    if error["type"] in ("too_short", "too_long"):
        bound, count = ("at least", "min_length") if error["type"] == "too_short" else ("at most", "max_length")
        message = f"must have {bound} {error['ctx'][count]} items, but got {error['ctx']['actual_length']}"
    if not isinstance(error["input"], str | int | float) or error["type"] in ("value_error", "json_invalid"):
        return message
    shown = repr(error["input"])
    return f"{message}, but got {shown if len(shown) <= _MAX_VALUE else shown[:_MAX_VALUE] + '...'}"


def _keys_at(model: type[BaseModel], path: list[str | int]) -> list[str]:
    """Return the keys known at ``path``, skipping union and list levels."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(iter(_models_in(field.annotation)), model)
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
