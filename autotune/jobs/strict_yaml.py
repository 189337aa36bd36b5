"""Strict parsing of users' YAML and JSON: plain data without aliases, tags or repeated keys."""

import json
from typing import Any

import yaml

#: Most levels of nested lists and mappings.
_DEEPEST = 20


class _Loader(yaml.SafeLoader):
    """Loads safe YAML without aliases, tags, repeated keys or deep nesting; dates stay text."""

    depth = 0
    yaml_implicit_resolvers = {  # noqa: RUF012 - read through the class by yaml
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not allowed, but line {line} has one; repeat the value instead")
        if event.tag is not None:
            raise yaml.YAMLError(f"tags are not allowed, but line {line} has one; delete it")
        if self.depth == _DEEPEST and isinstance(event, yaml.CollectionStartEvent):
            raise yaml.YAMLError(f"at most {_DEEPEST} levels are allowed, but line {line} goes deeper")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key must be text, but the key on line {line} is a list or a mapping")
            if key.value in seen:
                raise yaml.YAMLError(f"a key may appear only once, but line {line} repeats {key.value!r}; delete one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line} has an invalid number; put it in quotes if it is text") from None


def load_yaml(text: bytes) -> Any:
    """Return the data in a YAML text.

    Raises:
        yaml.YAMLError: if it is not YAML, has aliases, tags, repeated keys, NUL characters or more than 20 levels.
        UnicodeDecodeError: if it is not text.
    """
    data = yaml.load(text, Loader=_Loader)
    _check(data)
    return data


def load_json(text: bytes) -> Any:
    """Return the data in a JSON text.

    Raises:
        yaml.YAMLError: if it is not JSON, has repeated keys, numbers that are not finite, NUL characters or more than
            20 levels.
        UnicodeDecodeError: if it is not text.
    """
    try:
        data = json.loads(text, object_pairs_hook=_mapping, parse_constant=_refuse)
    except RecursionError:
        raise yaml.YAMLError(f"at most {_DEEPEST} levels are allowed") from None
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise yaml.YAMLError(str(error)) from None
    _check(data)
    return data


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"a key may appear only once, but {key!r} is repeated; delete one")
        mapping[key] = value
    return mapping


def _refuse(constant: str) -> None:
    raise ValueError(f"a number must be finite, but got {constant}")


def _check(data: Any, depth: int = 0) -> None:
    """Reject data that is nested too deeply and text that databases reject."""
    if isinstance(data, str) and any(character == "\0" or "\ud800" <= character <= "\udfff" for character in data):
        raise yaml.YAMLError(f"text must not contain NUL characters or unpaired surrogates, but got {data[:80]!r}")
    if not isinstance(data, dict | list):
        return
    if depth == _DEEPEST:
        raise yaml.YAMLError(f"at most {_DEEPEST} levels are allowed")
    for part in [*data.keys(), *data.values()] if isinstance(data, dict) else data:
        _check(part, depth + 1)
