"""From configuration to objects: `_target_` sections are checked against the signature of what they name, then called.

Every option is a keyword-only argument with a type; `Annotated[float, "0 <= x < 1"]` states a range. Unknown options,
wrong types and values out of range fail with one sentence before anything starts.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from runner.errors import Misuse, nearest
from runner.packages import ROOT, allow, allowable, packages

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
        if target is None:
            raise Misuse(f"{path}._target_ is missing; it should name something in {allowed}.")
        raise Misuse(f"{path}._target_ = {target!r} should name something in {allowed}{_mend(target)}.")
    module, _, name = target.rpartition(".")
    what = f"{path}._target_ = {target!r}"
    inside = vars(_imported(module, what))
    # What a module merely imports is not its own.
    built = {n: each for n, each in inside.items() if callable(each) and _home(each).startswith(own + LIBRARIES)}
    if name not in inside:
        raise Misuse(f"{what} cannot be found: {module} has no {name!r}.{nearest(name, built)}")
    if name not in built:
        raise Misuse(f"{what} is nothing that a configuration may build.")
    # Nor are our functions that are no builders: a builder takes keywords only.
    if target.startswith(own) and not _takes_keywords_only(built[name]):
        raise Misuse(
            f"{what} is nothing that a configuration may build: it takes arguments by position; give a dataclass "
            f"kw_only=True, a function a * before its arguments."
        )
    return built[name]


def check_kind(section: Mapping[str, Any], path: str, kind: type) -> None:
    """Misuse for a target that makes something else, where that can be told without calling it."""
    target = locate(section.get("_target_"), path)
    made = target if inspect.isclass(target) else _hints(target, path).get("return")
    if inspect.isclass(made) and not issubclass(made, kind):
        raise Misuse(
            f"{path}._target_ = {section['_target_']!r} makes no {path}: it should be a class on "
            f"{kind.__module__}.{kind.__qualname__}, or a function that returns one."
        )


def _home(found: Any) -> str:
    return f"{getattr(found, '__module__', None)}."


def _imported(module: str, what: str) -> types.ModuleType:
    """The module; Misuse says which name is none, or which line of whose code fails."""
    try:
        return importlib.import_module(module)
    except Misuse:
        raise
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
        if absent and f"{module}.".startswith(f"{absent}."):
            parent, _, name = absent.rpartition(".")
            beside = [each.name for each in pkgutil.iter_modules(getattr(sys.modules.get(parent), "__path__", []))]
            raise Misuse(
                f"{what} cannot be found: {parent or 'Python'} has no module {name!r}.{nearest(name, beside)}"
            ) from error
        mend = "; install what is missing, or mend its name" if absent else ""
        raise Misuse(f"{what} cannot be imported: {_fault(error)}{mend}.") from error


def _fault(error: BaseException) -> str:
    """Where code of ours or of the user's fails, and why."""
    file, line, told = "", None, str(error)
    if isinstance(error, SyntaxError):
        file, line, told = error.filename or "", error.lineno, error.msg
    else:
        folders = tuple(f"{folder}/" for folder in (ROOT, *(package.folder for package in packages())))
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        whose = [frame for frame in frames if frame.filename.startswith(folders)] or frames
        if whose:
            file, line = whose[-1].filename, whose[-1].lineno
    return f"{file}, line {line}: {type(error).__name__}: {' '.join(told.split()).rstrip('.')}"


def _hints(target: Any, path: str) -> dict[str, Any]:
    """The types of a target's options, and of what a function returns."""
    hinted = target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target
    try:
        return get_type_hints(hinted, include_extras=True)
    except Exception as error:
        where = f"{target.__module__}.{target.__qualname__}"
        raise Misuse(f"{path}: a type hint of {where} cannot be read: {type(error).__name__}: {error}.") from error


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
    hints = _hints(target, path)
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
