"""Hydra's part of a composition: the choices of groups composed, dotted overrides merged onto them, all resolved.

Hydra finds out which files make up a configuration. They are then merged as plain dictionaries, which costs a tenth of
merging OmegaConf's nodes and gives the same; whatever is not plain (an interpolation, `???`, a list in a mapping's
place) is left to Hydra and OmegaConf, and so is every mistake.
"""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir, version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from methods.schedules import difference, imp_parent, lottery_parent, rewound_parent
from runner.compose import CONF, file, folders, groups, names
from runner.errors import Misuse, nearest
from runner.identity import Config

# What conf/ may compute from other options, each a function of their values alone.
RESOLVERS: dict[str, Callable[..., Any]] = {
    "lottery_parent": lottery_parent,
    "imp_parent": imp_parent,
    "rewound_parent": rewound_parent,
    "difference": difference,
}
for _name, _function in RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _function, replace=True)

_VERSION_BASE = "1.3"
_MISSING = "???"
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)(?:,[^${}]*)?\}")
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")
_CALL = re.compile(rf"\$\{{({'|'.join(RESOLVERS)}):({_REFERENCE.pattern}(?:,{_REFERENCE.pattern})*)\}}")


class _NotPlain(Exception):
    """Something that only OmegaConf knows how to merge or to resolve, or a mistake that Hydra has a name for."""


@functools.lru_cache(maxsize=16384)
def parse(text: str) -> Override:
    """An override in Hydra's grammar; Misuse when it is not of the form key=value."""
    try:
        override = _parser().parse_override(text)
    except HydraException:
        raise Misuse(
            f"{text!r} is not an override; write key=value, and quote a value with spaces or commas: "
            """'schedule.lr="1:25 -> 0.1, 26:50 -> 0.02"'."""
        ) from None
    if override.is_add() or override.is_delete() or override.is_sweep_override():
        raise Misuse(f"{text!r}: only key=value is possible here (sweeps need -m; every option exists already).")
    return override


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def resolve(overrides: Sequence[str]) -> Config:
    """The configuration of these overrides as the files of conf/ make it. Misuse names what is unknown."""
    chosen: list[Override] = []
    dotted: list[Override] = []
    for override in map(parse, overrides):
        (chosen if override.key_or_group in groups() else dotted).append(override)
    for override in chosen:
        name, options = override.value(), names(override.key_or_group)
        if name is None:
            raise Misuse(f"{override.key_or_group}=null is no choice; leave it out for the one in conf/config.yaml.")
        if str(name) not in options:
            raise Misuse(f"there is no {override.key_or_group} {str(name)!r}.{nearest(str(name), options)}")
    # Of two choices for one group the last counts; sorted, so that the caches do not depend on their order.
    choices = {override.key_or_group: override.input_line or "" for override in chosen}
    chosen_lines = tuple(choices[group] for group in sorted(choices))
    try:
        return _resolve_plain(chosen_lines, dotted)
    except _NotPlain:
        return resolve_by_omegaconf(chosen_lines, dotted)
    except MarkedYAMLError as error:
        mark, context = error.problem_mark, f" {error.context}" if error.context else ""
        where = f"{mark.name} is not valid YAML: line {mark.line + 1}" if mark else "a choice is not valid YAML"
        raise Misuse(f"{where}: {error.problem}{context}.") from None
    except UnicodeDecodeError as error:
        raise Misuse(f"{' '.join(chosen_lines)}: a choice is not UTF-8: {error}.") from None


def resolve_by_omegaconf(chosen: tuple[str, ...], dotted: Sequence[Override]) -> Config:
    """The same without shortcuts."""
    config = copy.deepcopy(_compose_groups(chosen, folders()))
    for override in dotted:
        _assign(config, override)
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise Misuse(f"the configuration does not resolve: {str(error).splitlines()[0]}") from None
    assert isinstance(resolved, dict)
    return {str(name): value for name, value in resolved.items()}


def search_path() -> list[str]:
    """The override of Hydra's own that has it look for choices in the user's packages, too; nothing without any."""
    return _search_path(folders())


def _search_path(confs: tuple[Path, ...]) -> list[str]:
    # Not pkg://, for which Hydra would import the package.
    quoted = [f"'file://{conf}'" for conf in (str(conf).replace("'", "\\'") for conf in confs[1:])]
    return [f"hydra.searchpath=[{','.join(quoted)}]"] if quoted else []


@functools.lru_cache(maxsize=512)
def _compose_groups(chosen: tuple[str, ...], confs: tuple[Path, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base=_VERSION_BASE):
            return hydra_compose("config", [*_search_path(confs), *chosen])
    except HydraException as error:
        first = next(iter(str(error).splitlines()), "one of their files is not in OmegaConf's grammar")
        raise Misuse(f"the groups {' '.join(chosen)} do not compose: {first}") from None


def _assign(config: DictConfig, override: Override) -> None:
    """Set a dotted key that exists already."""
    path = override.key_or_group
    node: Any = config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig) or part not in node:
            where = ".".join(parts[:depth])
            if depth == 1 and isinstance(node, DictConfig) and isinstance(node.get("name"), str):
                where += f" {node['name']}"
            options = [str(name) for name in node] if isinstance(node, DictConfig) else []
            options += list(groups()) if depth == 0 else []
            inside = _sections_with(path) if depth == 0 else []
            meant = f" Did you mean {' or '.join(map(repr, inside))}?" if inside else nearest(part, options)
            raise Misuse(f"there is no option {path!r}: {where or 'the configuration'} has no {part!r}.{meant}")
        node = node._get_node(part)
        if isinstance(node, DictConfig) and node._is_none():
            node = None
    value = override.value()
    if isinstance(node, DictConfig) and not isinstance(value, dict) and not (path == "start" and value is None):
        raise Misuse(f"{path} is a section of the configuration, not an option; set one of its options, {path}.NAME.")
    OmegaConf.set_struct(config, False)
    try:
        OmegaConf.update(config, path, value, merge=True)
    except OmegaConfBaseException as error:
        raise Misuse(f"{path} cannot be {value!r}: {str(error).splitlines()[0]}") from None
    OmegaConf.set_struct(config, True)


def _sections_with(name: str) -> list[str]:
    """GROUP.NAME for every group of science, and the trainer, of which a choice has this option."""
    option = re.compile(rf"^{re.escape(name)}:", re.MULTILINE)
    return [
        f"{group}.{name}"
        for group in groups()
        if group not in ("experiment", "profile", "cluster", "logger")
        and any(option.search(file(group, each).read_text(encoding="utf-8", errors="replace")) for each in names(group))
    ]


def _resolve_plain(chosen: tuple[str, ...], dotted: Sequence[Override]) -> Config:
    plain = _plain_groups(chosen)
    if plain is None:
        raise _NotPlain
    groups_config, special = plain
    config: Config = _copied(groups_config)
    for override in dotted:
        _assign_plain(config, override)
    for path in special:
        section: Any = config
        for part in path[:-1]:
            section = section[part] if isinstance(section, dict) else None
        if isinstance(section, dict):
            section[path[-1]] = _resolved(section[path[-1]], config)
    return config


def _resolved(value: Any, config: Config) -> Any:
    """A value that may hold environment variables and references (`${schedule.milestones.1}`), with what they say."""
    if isinstance(value, list):
        return [_resolved(item, config) for item in value]
    if not _special(value):
        return _copied(value)
    if variable := _VARIABLE.fullmatch(value):
        return _variable(value, os.environ.get(variable[1]))
    if reference := _REFERENCE.fullmatch(value):
        return _copied(_referred(reference[1], config))
    if call := _CALL.fullmatch(value):
        return RESOLVERS[call[1]](*(_referred(each, config) for each in _REFERENCE.findall(call[2])))
    return _REFERENCE.sub(lambda each: str(_referred(each[1], config)), value)


def _referred(path: str, config: Config) -> Any:
    node: Any = config
    for part in path.split("."):
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (LookupError, TypeError, ValueError):
            raise _NotPlain from None  # a mistake
    if isinstance(node, dict) or any(_special(leaf) for _, leaf in _leaves(node)):
        raise _NotPlain
    return node


@functools.lru_cache(maxsize=256)
def _variable(text: str, value: str | None) -> Any:
    """What `text`, a lone ${oc.env:...}, resolves to while the variable has this value."""
    try:
        return OmegaConf.create({"value": text})["value"]
    except OmegaConfBaseException:
        raise _NotPlain from None


def _assign_plain(config: Config, override: Override) -> None:
    *sections, name = override.key_or_group.split(".")
    node: Any = config
    for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
    value = override.value()
    if not isinstance(node, dict) or name not in node or override.package is not None:
        raise _NotPlain  # a mistake
    if any(_special(leaf) for _, leaf in _leaves(value)):
        raise _NotPlain
    present = node[name]
    if isinstance(present, dict) and isinstance(value, dict):
        _merge_plain(present, value)
    elif isinstance(present, dict) and not (override.key_or_group == "start" and value is None):
        raise _NotPlain  # a mistake
    elif isinstance(present, list) and isinstance(value, dict):
        raise _NotPlain
    else:
        node[name] = _copied(value)


def _plain_groups(chosen: tuple[str, ...]) -> tuple[Config, tuple[tuple[str, ...], ...]] | None:
    return _plain(chosen, folders())


@functools.lru_cache(maxsize=4096)
def _plain(chosen: tuple[str, ...], confs: tuple[Path, ...]) -> tuple[Config, tuple[tuple[str, ...], ...]] | None:
    """What the choices compose to, unresolved, and the paths of what reads an environment variable or refers to another
    option. None when it is not plain or does not compose.
    """
    version.setbase(_VERSION_BASE)
    try:
        defaults = create_defaults_list(
            repo=_repository(confs),
            config_name="config",
            overrides_list=[parse(text) for text in chosen],
            prepend_hydra=False,  # its own configuration is the larger part, and none of ours
            skip_missing=False,
        ).defaults
        config: Config = {}
        for default in defaults:
            _merge_plain(config, _file(default.config_path or "", default.package, confs))
    except (HydraException, OmegaConfBaseException, _NotPlain):
        return None
    config.pop("hydra", None)
    special = [(path, leaf) for path, leaf in _leaves(config) if _special(leaf)]
    if not all(
        _VARIABLE.fullmatch(leaf) or _CALL.fullmatch(leaf) or not _special(_REFERENCE.sub("", leaf))
        for _, leaf in special
    ):
        return None
    return config, tuple(dict.fromkeys(path[:-1] if path[-1] == "" else path for path, _ in special))


@functools.cache
def _repository(confs: tuple[Path, ...]) -> CachingConfigRepository:
    """The files of conf/ and of the user's packages, each read once in a process."""
    path = create_config_search_path(str(CONF))
    for conf in confs[1:]:
        path.append("package", f"file://{conf}")
    return CachingConfigRepository(ConfigLoaderImpl(path).repository)


@functools.cache
def _file(config_path: str, package: str | None, confs: tuple[Path, ...]) -> Config:
    """A file's content where its package puts it, unresolved. Not to be changed."""
    loaded = _repository(confs).load_config(config_path)
    if loaded is None or loaded.is_schema_source:
        raise _NotPlain
    if package is None:
        package = loaded.header["package"]
    content = OmegaConf.to_container(loaded.config, resolve=False)
    if isinstance(content, list):
        raise Misuse(f"{config_path}.yaml is a list; a choice is a mapping of options, NAME: VALUE.")
    if not isinstance(content, dict) or any(leaf == _MISSING for _, leaf in _leaves(content)):
        raise _NotPlain
    config: Any = content
    for part in reversed(package.split(".") if package else []):
        if not part.isidentifier() or part.startswith("_"):
            raise _NotPlain
        config = {part: config}
    return config


def _merge_plain(into: Config, other: Config) -> None:
    """Sections are merged, everything else is replaced, as OmegaConf does with untyped nodes."""
    for name, value in other.items():
        present = into.get(name)
        if isinstance(present, dict) and isinstance(value, dict):
            _merge_plain(present, value)
        elif {type(present), type(value)} == {dict, list}:
            raise _NotPlain
        else:
            into[name] = _copied(value)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of everything that is no section; the items of lists have their list's path."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, (*path, name))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, (*path, ""))
    else:
        yield path, value


def _special(leaf: Any) -> bool:
    """Whether OmegaConf reads more into it than a value."""
    return isinstance(leaf, str) and ("${" in leaf or leaf == _MISSING)
