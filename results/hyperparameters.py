"""Cells of `kind: config` tables: read from a composed config and printed with exactly the paper's digits."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from results.table import Settings
from runner.errors import Misuse, nearest

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_RANGE = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*->\s*(\S+)\s*")


def text(settings: Settings, config: Mapping[str, Any]) -> str:
    """What the composed `config` says, as the paper would print it; what contradicts `given` is added in brackets.

    A number is printed by `settings.number`; epoch ranges "1:25 -> 0.1, 26:50 -> 0.02" become
    "1:25, 0.100; 26:50, 0.020", each value printed so.
    """
    assert settings.read is not None and settings.number is not None
    value = evaluate(settings.read, config)
    broken = [
        f"{path} is {lookup(path, config)!r}"
        for path, wanted in (settings.given or {}).items()
        if lookup(path, config) != wanted
    ]
    return _printed(value, settings.number) + (f" ({', '.join(broken)})" if broken else "")


def evaluate(expression: str, config: Mapping[str, Any]) -> Any:
    """The value of `expression`: a dotted path of `config`, or + - * / over paths and numbers."""
    try:
        tree = ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise Misuse(f"'{expression}' is not a config path nor arithmetic over config paths.") from error
    return _evaluate(tree, expression, config)


def _evaluate(node: ast.expr, expression: str, config: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = (_evaluate(side, expression, config) for side in (node.left, node.right))
        if not all(_is_number(side) for side in (left, right)):
            raise Misuse(f"'{expression}' calculates with {left!r} and {right!r}, which are not both numbers.")
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Constant) and _is_number(node.value):
        return node.value
    if isinstance(node, ast.Attribute | ast.Name):
        return lookup(ast.unparse(node), config)
    raise Misuse(f"'{expression}' may hold config paths, numbers and + - * / only.")


def lookup(path: str, config: Mapping[str, Any]) -> Any:
    """The entry of `config` at the dotted `path`."""
    value: Any = config
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            options = sorted(map(str, value)) if isinstance(value, Mapping) else []
            raise Misuse(f"The composed config has no '{path}'.{nearest(name, options) if options else ''}")
        value = value[name]
    return value


def _printed(value: Any, spec: str) -> str:
    if isinstance(value, str) and "->" in value:
        parts = [_RANGE.fullmatch(part) for part in value.split(",")]
        if not all(parts):
            raise Misuse(f"'{value}' is not epoch ranges like '1:25 -> 0.1, 26:50 -> 0.02'.")
        return "; ".join(f"{m[1]}:{m[2]}, {_number(_parse(m[3], value), spec)}" for m in parts if m)
    if not _is_number(value):
        raise Misuse(f"{value!r} is neither a number nor epoch ranges.")
    return _number(value, spec)


def _number(value: float, spec: str) -> str:
    """`plain`: the shortest decimals (0.0005, 0.0); `power`: 10^{-5}; `whole`: 20,000; else a format like .3f.

    A value that the format could only show rounded is shown in full, so that rounding never hides a difference.
    """
    full = repr(float(value))
    if spec == "plain":
        return full
    if spec == "power":
        exponent = round(math.log10(value)) if value > 0 else 0
        return f"10^{{{exponent}}}" if value == float(f"1e{exponent}") else full
    if spec == "whole":
        return f"{round(value):,d}" if value == round(value) else full
    try:
        shown = format(float(value), spec)
        return shown if float(shown.replace(",", "")) == value else full
    except ValueError as error:
        raise Misuse(f"'{spec}' is no way to print a number; use plain, power, whole or a format like .3f.") from error


def _parse(number: str, ranges: str) -> float:
    try:
        return float(number)
    except ValueError as error:
        raise Misuse(f"'{ranges}' has the value '{number}', which is not a number.") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
