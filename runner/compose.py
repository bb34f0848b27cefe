"""Composition: command-line overrides -> one resolved configuration, a plain dictionary. No torch here.

Groups are composed by Hydra once per set of choices; dotted overrides are merged onto the result. Profiles stretch the
epochs; a stage's parent is composed and embedded, so that the configuration alone says everything about the run.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from methods.schedules import EpochRanges, is_epoch_ranges, stretch
from runner.errors import Misuse, nearest
from runner.identity import SCIENCE, Config

CONF = Path(__file__).resolve().parent.parent / "conf"
# What a parent run does not inherit from its child: it has a method, a schedule and a start of its own.
_OWN = ("method", "schedule", "start")


@functools.cache
def groups() -> tuple[str, ...]:
    """The names of the configuration groups."""
    return tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir()))


@functools.cache
def names(group: str) -> tuple[str, ...]:
    """The option names of a group, as on the command line ("dsr/lenet_mnist" for experiments)."""
    found = []
    for path in sorted((CONF / group).rglob("*.yaml")):
        # A folder beside an experiment of the same name holds its per-method parts, which are no experiments.
        if path.parent == CONF / group or not path.parent.with_suffix(".yaml").exists():
            found.append(str(path.relative_to(CONF / group).with_suffix("")))
    return tuple(found)


def parse(overrides: Iterable[str]) -> list[Override]:
    """Parse overrides in Hydra's grammar; Misuse for one that is not of the form key=value."""
    parsed = []
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            raise Misuse(
                f"{text!r} is not an override; write key=value, and quote a value with spaces or commas: "
                """'schedule.lr="1:25 -> 0.1, 26:50 -> 0.02"'."""
            ) from None
        if override.is_add() or override.is_delete() or override.is_sweep_override():
            raise Misuse(f"{text!r}: only key=value is possible here (sweeps need -m; every option exists already).")
        parsed.append(override)
    return parsed


def compose(overrides: Sequence[str] = ()) -> Config:
    """The resolved configuration of these overrides. Misuse names what is unknown or impossible."""
    chosen: list[Override] = []
    dotted: list[Override] = []
    for override in parse(overrides):
        (chosen if override.key_or_group in groups() else dotted).append(override)
    for override in chosen:
        name = override.value()
        if name is not None and str(name) not in names(override.key_or_group):
            options = names(override.key_or_group)
            raise Misuse(f"there is no {override.key_or_group} {str(name)!r}.{nearest(str(name), options)}")
    # Of two choices for one group the last counts; sorted, so that the cache does not depend on their order.
    choices = {override.key_or_group: override.input_line or "" for override in chosen}
    config = copy.deepcopy(_compose_groups(tuple(choices[group] for group in sorted(choices))))
    for override in dotted:
        _assign(config, override)
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise Misuse(f"the configuration does not resolve: {str(error).splitlines()[0]}") from None
    assert isinstance(resolved, dict)
    return _finish({str(name): value for name, value in resolved.items()}, overrides)


@functools.lru_cache(maxsize=512)
def _compose_groups(chosen: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose("config", list(chosen))
    except HydraException as error:
        raise Misuse(f"the groups {' '.join(chosen)} do not compose: {str(error).splitlines()[0]}") from None


def _assign(config: DictConfig, override: Override) -> None:
    """Set a dotted key that exists already."""
    path = override.key_or_group
    node: Any = config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig) or part not in node:
            where = ".".join(parts[:depth])
            options = [str(name) for name in node] if isinstance(node, DictConfig) else []
            options += list(groups()) if depth == 0 else []
            raise Misuse(
                f"there is no option {path!r}: {where or 'the configuration'} has no {part!r}.{nearest(part, options)}"
            )
        node = node._get_node(part)
        if isinstance(node, DictConfig) and node._is_none():
            node = None
    value = override.value()
    if isinstance(node, DictConfig) and not isinstance(value, dict) and not (path == "start" and value is None):
        raise Misuse(f"{path} is a section of the configuration, not an option; set one of its options, {path}.NAME.")
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, path, value, merge=True)
    OmegaConf.set_struct(config, True)


def _finish(config: Config, overrides: Sequence[str]) -> Config:
    """Apply the profile, embed the parent of a stage, and check what needs no class to be checked."""
    profile = config["profile"]
    factor = profile["stretch"]
    if not isinstance(factor, int | float) or not factor > 0:
        raise Misuse(f"profile.stretch = {factor!r} should be a number above 0.")
    if profile.get("train_subset") is not None and "train_subset" in config["dataset"]:
        config["dataset"]["train_subset"] = profile["train_subset"]
    start, config["start"] = config["start"], None
    try:
        config = {name: value if name == "profile" else stretch(value, factor) for name, value in config.items()}
        check_ranges(config)
    except ValueError as error:
        raise Misuse(f"{error}.") from None
    if start:
        config["start"] = _embed_parent(start, overrides)
    return config


def _embed_parent(start: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    unknown = set(start) - {"parent", "checkpoint", "take"}
    for name in unknown:
        raise Misuse(f"there is no option 'start.{name}'.{nearest(name, ['parent', 'checkpoint', 'take'])}")
    if not isinstance(start.get("parent"), list):
        raise Misuse("start.parent should be the list of overrides that make the parent, such as [method=dense].")
    take = start.get("take", "weights")
    if take not in ("weights", "mask", "init"):
        raise Misuse(f"start.take = {take!r} should be weights, mask or init.")
    if start.get("checkpoint", "last") != "last":
        raise Misuse(f"start.checkpoint = {start['checkpoint']!r} should be last.")
    inherited = [o for o in overrides if o.split("=")[0].split(".")[0] not in _OWN]
    own = [*inherited, *start["parent"]]
    parent = compose(own)
    # Not `science`, which drops how the parent's own parent was written: that is needed to run it.
    embedded = {name: parent[name] for name in SCIENCE}
    return {"parent": embedded, "checkpoint": "last", "take": take, "overrides": own}


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
