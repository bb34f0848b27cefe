"""A YAML document read strictly: no duplicate keys, no unknown fields; every complaint names the file."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

from results.parsed import parsed
from runner import untrusted
from runner.errors import Misuse, nearest


def load(path: Path) -> dict[str, Any]:
    """The mapping in `path`; Misuse names the file and the line of a mistake."""
    try:
        text = untrusted.content(path)
    except OSError as error:
        raise Misuse(f"{path} cannot be read: {error.strerror}.") from error
    content = parsed(path, text, lambda: _parse(path, text))
    if not isinstance(content, dict):
        raise Misuse(f"{path} must hold a mapping of fields, not {type(content).__name__}.")
    return content


def _parse(path: Path, text: bytes) -> Any:
    import yaml  # slow to import, and most commands find all files parsed

    try:
        return untrusted.parse_yaml(text.decode(), _strict_loader())  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise Misuse(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error


@functools.cache
def _strict_loader() -> Any:
    """PyYAML lets the last of two equal keys win; in a transcribed table that loses a number."""
    import yaml

    # The C parser is ten times faster; both build plain data only.
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class StrictLoader(base):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            seen: set[Hashable] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key}' occurs twice", key_node.start_mark)
                seen.add(key)
            mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
            return mapping

    return StrictLoader


def check_fields(
    fields: object, where: str, allowed: Collection[str], required: Collection[str] = ()
) -> Mapping[str, Any]:
    """`fields` itself, once it is a mapping with only `allowed` names and all `required` ones."""
    if not isinstance(fields, dict):
        raise Misuse(f"{where} must be a mapping of fields, not {fields!r}.")
    for name in fields:
        if name not in allowed:
            raise Misuse(f"{where} has the unknown field '{name}'.{nearest(str(name), sorted(allowed))}")
    for name in required:
        if name not in fields:
            raise Misuse(f"{where} lacks the field '{name}'.")
    return fields


def text(value: object, where: str) -> str:
    """`value`, once it is a text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise Misuse(f"{where} must be a text, not {value!r}.")
    return value.strip()


def texts(value: object, where: str) -> tuple[str, ...]:
    """`value` as a tuple, once it is a list of texts."""
    if not isinstance(value, list):
        raise Misuse(f"{where} must be a list of texts, not {value!r}.")
    return tuple(text(item, where) for item in value)
