"""Composition: command-line overrides -> one resolved configuration, a plain dictionary. No torch here.

Groups are composed by Hydra once per set of choices; dotted overrides are merged onto the result. Profiles stretch the
epochs; a stage's parent is composed and embedded, so that the configuration alone says everything about the run.
What has been composed is remembered, across processes too (`remembered`), so that Hydra is imported only for news.
"""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from methods.schedules import EpochRanges, is_epoch_ranges, stretch, whole_epochs
from runner import secrecy
from runner.compositions import Compositions, Kept, variables
from runner.errors import Misuse, nearest
from runner.identity import SCIENCE, Config, key, parent_config
from runner.packages import is_choice, packages

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONF = Path(__file__).resolve().parent.parent / "conf"
# What a parent run does not inherit from its child: it has a method, a schedule and a start of its own.
_OWN = ("method", "schedule", "start")
#: What a stage may take from its parent: its weights, its mask (with initial weights), both, or neither.
INITIALIZATIONS = ("original", "random", "rewound")
TAKES = ("weights", "mask", "weights_and_mask", "init")


class Composition:
    """A composed configuration and what it is called."""

    def __init__(self, config: Config) -> None:
        self._whole: Config | None = config
        self._names: tuple[str, tuple[str, ...]] | None = None
        try:
            self._text = orjson.dumps(config)
        except TypeError:
            return
        if orjson.loads(self._text) == config:  # otherwise JSON cannot hold it: a nan, say
            self._whole = None

    @classmethod
    def of_kept(cls, kept: Kept) -> Composition:
        """What `kept` says of it."""
        found = cls.__new__(cls)
        found._whole = None
        found._names, found._text = kept[:2], kept[2]
        return found

    @property
    def kept(self) -> Kept | None:
        """All of it, to be kept; None where JSON cannot hold it."""
        return None if self._whole is not None else (self.key, self.ancestors, self._text)

    @property
    def config(self) -> Config:
        """A copy of one's own."""
        return orjson.loads(self._text) if self._whole is None else copy.deepcopy(self._whole)

    @property
    def key(self) -> str:
        """The key of its run."""
        return self._keys()[0]

    @property
    def ancestors(self) -> tuple[str, ...]:
        """The keys of the runs that its run starts from, the nearest first."""
        return self._keys()[1]

    def _keys(self) -> tuple[str, tuple[str, ...]]:
        if self._names is None:
            config = self.config
            ancestors = []
            parent = parent_config(config)
            while parent is not None:
                ancestors.append(key(parent))
                parent = parent_config(parent)
            self._names = key(config), tuple(ancestors)
        return self._names


@functools.cache
def groups() -> tuple[str, ...]:
    """The names of the configuration groups. (What conf/hydra holds is Hydra's, and no part of a configuration.)"""
    return tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"))


def folders() -> tuple[Path, ...]:
    """Where choices lie: conf/ and those of the user's packages. Misuse when these are not as they should be."""
    return (CONF, *(package.conf for package in packages() if package.conf))


def names(group: str) -> tuple[str, ...]:
    """The option names of a group, as on the command line ("dsr/lenet_mnist" for experiments); the user's come last."""
    return _names(group, folders())


@functools.cache
def _names(group: str, confs: tuple[Path, ...]) -> tuple[str, ...]:
    found = []
    for conf in confs:
        for path in sorted(filter(is_choice, (conf / group).rglob("*.yaml"))):
            relative = path.relative_to(conf)
            # A folder beside an experiment of the same name holds its parts by method and model, no experiments.
            inside = [each / folder for each in confs for folder in relative.parents[:-2]]
            if not any(folder.with_suffix(".yaml").exists() for folder in inside):
                found.append(str(relative.relative_to(group).with_suffix("")))
    return tuple(found)


def file(group: str, name: str) -> Path:
    """The file of a choice, ours or the user's; where there is none, ours as it would be."""
    paths = [conf / group / f"{name}.yaml" for conf in folders()]
    return next((path for path in paths if path.exists()), paths[0])


def headline(group: str, name: str) -> str:
    """The first sentence of the comment that the file of a choice begins with; empty where it has none."""
    comment: list[str] = []
    path = file(group, name)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            comment.append(line.removeprefix("#").strip())
    return re.split(r"(?<=\.)\s+(?=[A-Z<])", " ".join(comment))[0]


def parse(overrides: Iterable[str]) -> list[Override]:
    """Parse overrides in Hydra's grammar; Misuse for one that is not of the form key=value."""
    from runner import hydra_groups

    return [hydra_groups.parse(text) for text in overrides]


def compose(overrides: Sequence[str] = ()) -> Config:
    """The resolved configuration of these overrides. Misuse names what is unknown or impossible."""
    return identify(overrides).config


def identify(overrides: Sequence[str] = ()) -> Composition:
    """The configuration of these overrides and its keys, which are much cheaper to look up than a configuration."""
    what, confs = tuple(overrides), folders()
    reads = variables(*confs)
    if reads is None or any("${" in text for text in what):  # it may read anything
        return _compose(what)
    environment = tuple(map(os.environ.get, reads))
    composition = _composed.get((confs, environment, what))
    kept = _kept if _kept is not None and (_kept.confs, _kept.environment) == (confs, environment) else None
    known = None if kept is None else kept.get(what)
    if composition is None:
        composition = _compose(what) if known is None else Composition.of_kept(known)
        _composed[confs, environment, what] = composition
    # A seed would make an entry for every run, and only the runs that are missing have theirs composed.
    if kept is not None and known is None and not any(text.startswith("seed=") for text in what):
        kept.add(what, composition.kept)
    return composition


# By the folders of choices, the values of the environment variables that their files read, and the overrides.
_composed: dict[tuple[tuple[Path, ...], tuple[str | None, ...], tuple[str, ...]], Composition] = {}
_kept: Compositions | None = None


@contextmanager
def remembered() -> Iterator[None]:
    """Within it, what other processes composed from the same conf/ by the same code is not composed again.

    To be put around a whole command: what is new is written once, at its end.
    """
    global _kept
    try:
        confs = folders()
        reads = variables(*confs)
    except Misuse:  # which the command itself will meet, and say
        reads = None
    if _kept is not None or reads is None:  # inside another command's, or nothing can be known
        yield
        return
    _kept = kept = Compositions(confs, tuple(map(os.environ.get, reads)))
    try:
        yield
    finally:
        _kept = None
        kept.write()


def _compose(overrides: tuple[str, ...]) -> Composition:
    from runner import hydra_groups

    found = Composition(_finish(hydra_groups.resolve(overrides), overrides))
    secrecy.check(_texts([overrides, found.config]))
    return found


def _texts(value: Any) -> Iterator[str]:
    """Every text within lists and mappings, names too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield str(name)
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _finish(config: Config, overrides: Sequence[str]) -> Config:
    """Apply the profile, embed the parent of a stage, and check what needs no class to be checked."""
    profile = config["profile"]
    for name in ("train_subset", "max_length"):
        if profile.get(name) is not None and name in config["dataset"]:
            config["dataset"][name] = profile[name]
    for name in ("precision", "memory_format"):
        if profile.get(name) is not None and not any(text.startswith(f"{name}=") for text in overrides):
            config[name] = profile[name]
    start, config["start"] = config["start"], None
    embedded, factor = _embed_parent(start, overrides) if start else (None, None)
    if factor is None:
        factor = _factor(profile, config["schedule"]["epochs"])
    profile["stretch"] = factor
    extend = config["schedule"].get("extend", 1)
    if not isinstance(extend, int | float) or isinstance(extend, bool) or not extend > 0:
        raise Misuse(f"schedule.extend = {extend!r} should be a number above 0.")
    try:
        whole = factor * extend
        config = {name: value if name == "profile" else stretch(value, whole) for name, value in config.items()}
        check_ranges(config)
        _take_part(config["schedule"])
    except ValueError as error:
        raise Misuse(f"{error}.") from None
    config["start"] = embedded
    return config


def _take_part(schedule: dict[str, Any]) -> None:
    """Of a schedule its epochs `from_epoch` to `until_epoch`, whole ones, at the learning rates of the whole."""
    first, last, epochs = schedule.get("from_epoch", 0), schedule.get("until_epoch", 0), schedule["epochs"]
    known = all(isinstance(value, int | float) and value >= 0 for value in (first, last, epochs))
    if not known or (first == 0 and last == 0):  # what is wrong the schedule will say, or the method that it comes from
        return
    first = whole_epochs(first, 1) if first else 0
    last = whole_epochs(last, 1) if last else epochs
    if not first < last <= epochs:
        raise ValueError(
            f"schedule.from_epoch = {first:g} and schedule.until_epoch = {last:g} should lie in this order within the "
            f"{epochs:g} epochs of the schedule"
        )
    before = schedule.get("lr_from_epoch", 0)
    schedule |= {"from_epoch": first, "until_epoch": last, "epochs": last - first}
    schedule |= {"lr_epochs": before + epochs, "lr_from_epoch": before + first}


def _factor(profile: dict[str, Any], epochs: Any) -> float:
    """What a profile multiplies the epochs of a recipe by whose first stage has `epochs`."""
    for name in ("epochs", "stretch"):
        if (value := profile.get(name)) is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise Misuse(f"profile.{name} = {value!r} should be a number above 0.")
        if name == "stretch":
            return value
        return min(1.0, value / epochs) if isinstance(epochs, int | float) and epochs > 0 else 1.0
    raise Misuse("a profile should say either epochs or stretch.")


def _embed_parent(start: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], float]:
    """The `start` of a stage with its parent's science, and the factor on the parent's epochs."""
    options = ("parent", "checkpoint", "take", "initialization")
    for name in set(start) - set(options):
        raise Misuse(f"there is no option 'start.{name}'.{nearest(name, options)}")
    if not isinstance(start.get("parent"), list) or not all(isinstance(text, str) for text in start["parent"]):
        raise Misuse("start.parent should be the list of overrides that make the parent, such as ['method=dense'].")
    take = start.get("take", "weights")
    if take not in TAKES:
        raise Misuse(f"start.take = {take!r} should be one of {', '.join(TAKES)}.")
    initialization = start.get("initialization", "original")
    if initialization not in INITIALIZATIONS:
        raise Misuse(f"start.initialization = {initialization!r} should be one of {', '.join(INITIALIZATIONS)}.")
    if initialization == "rewound" and "weights" in take:
        raise Misuse(f"start.initialization = rewound asks for other weights than start.take = {take}; take the mask.")
    checkpoint = start.get("checkpoint", "last")
    if not isinstance(checkpoint, str) or not checkpoint.isidentifier():
        raise Misuse(f"start.checkpoint = {checkpoint!r} should be last, or a name that the parent's method keeps.")
    inherited = [o for o in overrides if o.split("=")[0].split(".")[0] not in _OWN]
    own = [*inherited, *start["parent"]]
    parent = compose(own)
    # Not `science`, which drops how the parent's own parent was written: that is needed to run it.
    embedded = {name: parent[name] for name in SCIENCE}
    whole = {
        "parent": embedded,
        "checkpoint": checkpoint,
        "take": take,
        "initialization": initialization,
        "overrides": own,
    }
    return whole, parent["profile"]["stretch"]


def check_ranges(config: Config, path: str = "") -> None:
    """ValueError when epoch ranges anywhere in the configuration are malformed or end before the run does."""
    epochs = config["schedule"]["epochs"] if not path else None
    for where, text in _epoch_ranges(config):
        last = EpochRanges.parse(text).last_epoch
        if epochs is not None and isinstance(epochs, int | float) and last < epochs:
            raise ValueError(f"{where} ends at epoch {last}, but the run has {epochs:g}; extend its last range")


def _epoch_ranges(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in ("start", "profile"):
                yield from _epoch_ranges(item, f"{path}.{name}" if path else str(name))
    elif is_epoch_ranges(value):
        yield path, value
