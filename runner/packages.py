"""The user's own packages: those that REGROW_PACKAGES lists add choices, tables and code to regrow's. None is imported.

The variable is the machine's: nothing that a run directory, a submission or a configuration says adds to it, so that
reading somebody else's runs loads no code of theirs.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from runner.errors import Misuse, nearest

VARIABLE = "REGROW_PACKAGES"
ROOT = Path(__file__).resolve().parent.parent
CONF, PAPERS = "conf", "papers"
_OURS = "regrow"
_TAKEN = {*sys.stdlib_module_names, "conf", "data", "methods", "models", "results", "runner", "scripts", "tests"}
_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Package:
    """A package by its top-level name; it has `conf`, choices in groups as in ours, or `papers` of table files."""

    name: str
    folder: Path

    @property
    def conf(self) -> Path | None:
        return _if_there(self.folder / CONF)

    @property
    def papers(self) -> Path | None:
        return _if_there(self.folder / PAPERS)


def packages() -> tuple[Package, ...]:
    """Those that REGROW_PACKAGES lists, in its order. Misuse names what is not there, or is there twice."""
    listed = os.environ.get(VARIABLE, "").strip()
    return _found(listed, tuple(sys.path)) if listed else ()


def roots() -> list[str]:
    """The folders that processes must have in PYTHONPATH wherever they begin: regrow's and those of packages."""
    parents = [package.folder.parent for package in packages()]
    return list(dict.fromkeys(map(str, (ROOT, *(path for path in parents if path.name not in _INSTALLED)))))


def python_path() -> str:
    """PYTHONPATH for processes that begin elsewhere: `roots`, and what it holds here."""
    return os.pathsep.join(filter(None, (*roots(), os.environ.get("PYTHONPATH"))))


def allow(name: str) -> str:
    """How to write the variable so that it lists this package, too."""
    return f"{VARIABLE}={','.join([*(package.name for package in packages()), name])}"


def allowable(name: str) -> bool:
    """Whether a top-level name may be listed at all: it is neither Python's nor regrow's."""
    return name.isidentifier() and name not in _TAKEN


@functools.lru_cache(maxsize=8)
def _found(listed: str, path: tuple[str, ...]) -> tuple[Package, ...]:
    names = dict.fromkeys(name for part in listed.split(",") if (name := part.strip()))
    for name in names:
        if not name.isidentifier():
            raise Misuse(f"{VARIABLE} = {listed!r} should be top-level packages with commas between: my_pkg,other.")
        if not allowable(name):
            raise Misuse(f"{VARIABLE} lists {name}, which is Python's or regrow's; list packages of your own.")
    found = tuple(map(_find, names))
    _check_choices(found)
    _check_papers(found)
    return found


def _find(name: str) -> Package:
    """Where a package lies, which for a top-level name can be asked without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        known = [module.name for module in pkgutil.iter_modules() if module.ispkg]
        raise Misuse(
            f"{VARIABLE} lists {name}, which cannot be found: pip install it, or have PYTHONPATH name the folder that "
            f"it lies in.{_close(name, known)}"
        )
    if not spec.submodule_search_locations:
        raise Misuse(f"{VARIABLE} lists {name}, which is one file and no package: it has no {CONF}/ or {PAPERS}/.")
    package = Package(name, Path(next(iter(spec.submodule_search_locations))).resolve())
    if package.conf is None and package.papers is None:
        beside = [path.name for path in package.folder.iterdir() if path.is_dir()] if package.folder.is_dir() else []
        meant = _close(CONF, beside) or _close(PAPERS, beside)
        raise Misuse(f"{VARIABLE} lists {name}, but {package.folder} has neither {CONF}/ nor {PAPERS}/.{meant}")
    return package


def _close(name: str, options: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.75)
    return f" Did you mean {close[0]!r}?" if close else ""


def _check_choices(found: Iterable[Package]) -> None:
    """Misuse for a file that is in no group, that somebody else has too, or that alters one of our recipes."""
    own = set(_files(ROOT / CONF))
    groups = {name.split("/")[0] for name in own if "/" in name} - {"hydra"}
    whose = dict.fromkeys(own, _OURS)
    for package in found:
        for name in _files(package.conf):
            group, _, choice = name.partition("/")
            if not choice or group not in groups:
                raise Misuse(f"{package.name} has {CONF}/{name}, which is in no group.{nearest(group, groups)}")
            if name in whose:
                raise Misuse(f"{package.name} and {whose[name]} both have {CONF}/{name}; give yours another name.")
            if _alters(name, own):
                raise Misuse(
                    f"{package.name} has {CONF}/{name}, which would change a recipe of {_OURS}'s for {_OURS}'s own "
                    f"choices; write an experiment of your own."
                )
            whose[name] = package.name


def _alters(name: str, own: set[str]) -> bool:
    """Whether a file is what one of `own` experiments says of one of our models and methods."""
    group, *parts = PurePath(name).with_suffix("").parts
    for cut in range(1, len(parts) if group == "experiment" else 0):
        if "/".join((group, *parts[:cut])) + ".yaml" in own:
            return all({f"model/{part}.yaml", f"method/{part}.yaml"} & own for part in parts[cut:])
    return False


def _check_papers(found: Iterable[Package]) -> None:
    """Misuse for a paper that somebody else has too, or a table of none."""
    whose = {name.split("/")[0]: _OURS for name in _files(ROOT / "results" / PAPERS)}
    for package in found:
        for paper in dict.fromkeys(name.split("/")[0] for name in _files(package.papers)):
            if paper.endswith(".yaml"):
                raise Misuse(f"{package.name} has {PAPERS}/{paper}, of no paper; move it to {PAPERS}/PAPER/{paper}.")
            if paper in whose:
                raise Misuse(f"{package.name} and {whose[paper]} both have {PAPERS}/{paper}; give yours another name.")
            whose[paper] = package.name


def is_choice(path: Path) -> bool:
    """Whether it is a file, and not one that an editor hides beside the one it edits."""
    return path.is_file() and not path.name.startswith(".")


def _files(folder: Path | None) -> Iterator[str]:
    """The YAML files of a folder, however deep, as posix paths."""
    for path in sorted(filter(is_choice, folder.rglob("*.yaml") if folder else [])):
        yield path.relative_to(folder or path).as_posix()


def _if_there(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None
