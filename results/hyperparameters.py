"""Cells of `kind: config`: read from a composed config and printed with exactly the paper's digits."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from methods import thresholds
from results.settings import Settings
from runner.errors import Misuse, nearest

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")
_FIELD = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
_RANGE = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*->\s*(\S+)\s*")


def text(settings: Settings, config: Mapping[str, Any]) -> str:
    """What the composed `config` says, as the paper would print it; what contradicts `given` is added in brackets.

    A template prints each {expression:format} in its place. Without braces `read` is one expression, its number printed
    by `settings.number`; epoch ranges "1:25 -> 0.1, 26:50 -> 0.02" become "1:25, 0.100; 26:50, 0.020". `settings.words`
    puts the paper's words in place of what was read.
    """
    assert settings.read is not None and settings.number is not None
    if "{" in settings.read:
        printed = _FIELD.sub(lambda field: _formatted(field[1], field[2] or "", config), settings.read)
    else:
        printed = _printed(evaluate(settings.read, config), settings.number)
    printed = (settings.words or {}).get(printed, printed)
    broken = [
        f"{path} is {lookup(path, config)!r}"
        for path, wanted in (settings.given or {}).items()
        if lookup(path, config) != wanted
    ]
    return printed + (f" ({', '.join(broken)})" if broken else "")


def evaluate(expression: str, config: Mapping[str, Any]) -> Any:
    """The value of `expression`: a dotted path of `config`, or + - * / over paths and numbers.

    Paths below `architecture` are facts of the config's model (results.architecture), those below `threshold` of its
    method's threshold (methods.thresholds), those below `engines` of its network as it is before training, pruned by
    magnitude (results.engines).
    """
    return arithmetic(_PATH.sub(lambda path: f"{{{path[0]}}}", expression), lambda path: lookup(path, config))


def arithmetic(
    expression: str, value_of: Callable[[str], Any], functions: Mapping[str, Callable[..., Any]] = MappingProxyType({})
) -> Any:
    """+ - * / over numbers and {names}, the latter as `value_of` gives them; a lone {name} may be of any type.

    `functions` may be called by their names, with numbers.
    """
    names: list[str] = []

    def placeholder(match: re.Match[str]) -> str:
        names.append(match[1])
        return f"_{len(names) - 1}"

    coded = re.sub(r"\{([^{}]+)\}", placeholder, expression)
    try:
        tree = ast.parse(coded.strip(), mode="eval").body
    except SyntaxError as error:
        raise Misuse(f"'{expression}' is not a path nor arithmetic over paths.") from error

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value(node.left), value(node.right)
            if not (is_number(left) and is_number(right)):
                raise Misuse(f"'{expression}' calculates with {left!r} and {right!r}, which are not both numbers.")
            if isinstance(node.op, ast.Div) and right == 0:
                raise Misuse(f"'{expression}' divides by 0.")
            return _OPERATORS[type(node.op)](left, right)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return value(ast.BinOp(ast.Constant(0), ast.Sub(), node.operand))
        if isinstance(node, ast.Constant) and is_number(node.value):
            return node.value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            if node.keywords or not all(map(is_number, arguments := [value(each) for each in node.args])):
                raise Misuse(f"'{expression}' calls {node.func.id} with something that is no number.")
            return functions[node.func.id](*arguments)
        if isinstance(node, ast.Name):
            index = node.id.removeprefix("_")
            return value_of(names[int(index)] if index.isdecimal() and int(index) < len(names) else node.id)
        raise Misuse(f"'{expression}' may hold paths, numbers and + - * / only.")

    return value(tree)


def _formatted(expression: str, spec: str, config: Mapping[str, Any]) -> str:
    value = evaluate(expression, config)
    try:
        return format(value, spec) if spec else _printed(value, "shortest")
    except (ValueError, TypeError) as error:
        raise Misuse(f"'{{{expression}:{spec}}}' cannot print {value!r}.") from error


def lookup(path: str, config: Mapping[str, Any]) -> Any:
    """The entry of `config` at the dotted `path`; in a list by its number from 0, as in schedule.milestones.1."""
    value: Any = config
    if path.split(".")[0] == "architecture":
        from results.architecture import facts

        value = {"architecture": facts(config)}
    elif path.split(".")[0] == "engines":
        from results import engines

        return engines.entry(path.removeprefix("engines."), config)
    elif path.split(".")[0] == "threshold":
        value = {"threshold": thresholds.facts(config["method"])}
    for name in path.split("."):
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
            continue
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
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(_printed(item, spec) for item in value) or "none"
    if not is_number(value):
        raise Misuse(f"{value!r} is neither a number nor a text.")
    return _number(value, spec)


def _number(value: float, spec: str) -> str:
    """`plain`: the shortest decimals (0.0005, 0.0); `power`: 10^{-5}; `whole`: 20,000; else a format like .3f.

    `shortest` (of templates without a format): 0.0005, 100.

    A value that the format could only show rounded is shown in full, so that rounding never hides a difference.
    """
    full = repr(float(value))
    if spec == "shortest":
        return f"{value:.12g}"
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


def is_number(value: object) -> bool:
    """An int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
