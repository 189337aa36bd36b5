"""YAML from people: plain data, nothing that expands, nothing that is said twice."""

from typing import Any

import yaml

#: Levels of lists and mappings a file may have.
_DEEPEST = 20


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, without repeated keys, and without deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"aliases are not allowed, but line {mark.line + 1} has one; write the value out")
        self.depth += 1
        if self.depth > _DEEPEST:
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"at most {_DEEPEST} levels are allowed, but line {line} goes deeper")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"a key may be given once, but line {line} has {key.value!r} again; delete one")
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(text: bytes) -> Any:
    """Return the data in a YAML text.

    Raises:
        yaml.YAMLError: if it is no YAML, has aliases, repeated keys or more than 20 levels.
        UnicodeDecodeError: if it is no text.
    """
    return yaml.load(text, Loader=_Loader)
