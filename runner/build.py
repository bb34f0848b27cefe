"""From configuration to objects: `_target_` sections are checked against the signature of what they name, then called.

Every option is a keyword-only argument with a type; `Annotated[float, "0 <= x < 1"]` states a range. Unknown options,
wrong types and values out of range fail with one sentence before anything starts.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from runner.errors import Misuse, nearest
from runner.packages import allow, allowable, packages

OWN = ("runner.", "methods.", "models.", "data.")
LIBRARIES = ("torch.optim.", "timm.optim.")
# Facts about the section that its target need not take.
_LABELS = ("name", "revision", "_target_")
_RANGE = re.compile(r"(?:([-\d.e]+) (<=?) )?x(?: (<=?) ([-\d.e]+))?")


def build(section: Mapping[str, Any], path: str, **given: Any) -> Any:
    """Call the target of a section with its options and with what the runner gives it (`given`)."""
    target = check(section, path, given)
    try:
        return target(**_arguments(section, target), **given)
    except (ValueError, TypeError) as error:
        raise Misuse(f"{path}: {error}.".replace("..", ".")) from error


def check(section: Mapping[str, Any], path: str, given: Mapping[str, Any] | tuple[str, ...] = ()) -> Callable[..., Any]:
    """Check a section against its target's signature without calling it; returns the target."""
    target = locate(section.get("_target_"), path)
    check_arguments(_arguments(section, target), target, path, given)
    return target


def locate(target: Any, path: str) -> Callable[..., Any]:
    """The callable a `_target_` names, if it is one that a configuration may name."""
    own = (*OWN, *(f"{package.name}." for package in packages()))
    if not isinstance(target, str) or not target.startswith(own + LIBRARIES):
        allowed = ", ".join(own + LIBRARIES)
        raise Misuse(f"{path}._target_ = {target!r} should name something in {allowed}{_mend(target)}.")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Misuse(f"{path}._target_ = {target!r} cannot be found: {error}.") from error
    # Neither what a module merely imports nor our functions that are no builders: a builder takes keywords only.
    ours = f"{getattr(found, '__module__', None)}.".startswith(own + LIBRARIES)
    if not callable(found) or not ours or (target.startswith(own) and not _takes_keywords_only(found)):
        raise Misuse(f"{path}._target_ = {target!r} is nothing that a configuration may build.")
    return found


def _mend(target: Any) -> str:
    """How to allow a package of the user's own, where the target may be of one."""
    name, dot, _ = target.partition(".") if isinstance(target, str) else ("", "", "")
    if not dot or not allowable(name) or any(library.startswith(f"{name}.") for library in LIBRARIES):
        return ""
    return f"; if {name} is a package that you trust, allow it with {allow(name)}"


def _takes_keywords_only(target: Callable[..., Any]) -> bool:
    parameters = inspect.signature(target).parameters.values()
    return all(parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) for parameter in parameters)


def _arguments(section: Mapping[str, Any], target: Callable[..., Any]) -> dict[str, Any]:
    accepted = inspect.signature(target).parameters
    return {name: value for name, value in section.items() if name not in _LABELS or name in accepted}


def check_arguments(
    arguments: Mapping[str, Any], target: Callable[..., Any], path: str, given: Mapping[str, Any] | tuple[str, ...] = ()
) -> None:
    """Names, types and ranges of `arguments` against the signature of `target`; `given` come from elsewhere."""
    parameters = inspect.signature(target).parameters
    hinted = target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target
    hints = get_type_hints(hinted, include_extras=True)
    for name, value in arguments.items():
        if name not in parameters or name in given:
            options = [p for p in parameters if p not in given]
            raise Misuse(f"there is no option '{path}.{name}'.{nearest(name, options)}")
        if name in hints and (problem := mismatch(value, hints[name])):
            raise Misuse(f"{path}.{name} = {value!r} should be {problem}.")
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        positional = parameter.kind is not parameter.KEYWORD_ONLY and path.endswith("optimizer") and name == "params"
        if parameter.default is parameter.empty and name not in arguments and name not in given and not positional:
            raise Misuse(f"{path}.{name} is missing; set it.")


def mismatch(value: Any, hint: Any) -> str | None:
    """What a value should have been, in words, or None where it fits the type hint."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return mismatch(value, args[0]) or next(
            (p for a in args[1:] if isinstance(a, str) and (p := _range(value, a))), None
        )
    if origin in (Union, types.UnionType):
        problems = [mismatch(value, arg) for arg in args]
        return None if None in problems else " or ".join(p for p in problems if p)
    if origin is Literal:
        return None if value in args else "one of " + ", ".join(map(str, args))
    if origin in (list, tuple) or hint in (list, tuple):
        if not isinstance(value, list | tuple):
            return "a list"
        inner = [a for a in args if a is not Ellipsis]
        return next((f"a list of which each is {p}" for v in value if inner and (p := mismatch(v, inner[0]))), None)
    if origin is dict or hint is dict:
        return None if isinstance(value, dict) else "a mapping"
    if hint is float:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if hint is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if hint is type(None):
        return None if value is None else "null"
    if hint in (bool, str):
        return None if isinstance(value, hint) else {bool: "true or false", str: "text"}[hint]
    return None if not inspect.isclass(hint) or isinstance(value, hint) else f"a {hint.__name__}"


def _range(value: Any, text: str) -> str | None:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no range")
    if not isinstance(value, int | float):
        from methods.schedules import EpochRanges

        try:  # epoch ranges: every value lies in the range
            values = [v for _, v in EpochRanges.parse(value).pairs] if isinstance(value, str) else []
        except ValueError as error:
            return f"epoch ranges such as '1:25 -> 0.1, 26:50 -> 0.02' ({error})"
        return next((p for v in values if (p := _range(v, text))), None)
    low, low_op, high_op, high = match.groups()
    fits_low = low is None or (value >= float(low) if low_op == "<=" else value > float(low))
    fits_high = high is None or (value <= float(high) if high_op == "<=" else value < float(high))
    return None if fits_low and fits_high else f"in the range {text}"
