"""What a run ran on: versions, commits, devices. No torch unless it is loaded already; no secrets, no host names."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.packages import Package, packages

PACKAGES = ("torch", "torchvision", "timm", "numpy", "hydra-core", "omegaconf", "scikit-learn")
ROOT = Path(__file__).resolve().parent.parent
CODE = ("conf", "runner", "methods", "models", "data")


def describe(device: str, threads: int, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The environment record of a run of `config` on `device` with `threads` CPU threads."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git": git_state(),
        **({"extensions": told} if (told := extensions(config)) else {}),
        "device": device,
        **_hardware(device),
        "threads": threads,
    }


def _hardware(device: str) -> dict[str, Any]:
    """What there is to say of a CUDA device, beside its name in torch."""
    if not device.startswith("cuda"):
        return {}
    from runner.device import hardware  # loads torch, which whoever has such a device has loaded

    return hardware(device)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit and dirtiness of the code folders when this process first asked: the code it runs is that of its start.

    {"commit": None, "dirty": None} outside a git checkout.
    """
    return _state_of(ROOT, CODE)


def extensions(config: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """The user's packages by name: version, commit, dirtiness and a digest of their code when this process first asked.

    Of a `config` only those that its `_target_`s name. A key knows of their code only what `revision` says; this tells
    two states of it apart afterwards.
    """
    targets = None if config is None else tuple(_targets(config))
    return {
        package.name: _extension(package)
        for package in packages()
        if targets is None or any(target.startswith(f"{package.name}.") for target in targets)
    }


def _targets(section: Mapping[str, Any]) -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _targets(value)
        elif name == "_target_":
            yield str(value)


@functools.cache
def _extension(package: Package) -> dict[str, Any]:
    # Folders that git ignores, such as an environment within a checkout, are in no commit.
    tracked = _git(package.folder, "ls-files", "--", "*.py")
    state = _state_of(package.folder, ("*.py", "conf")) if tracked else {"commit": None, "dirty": None}
    digest = hashlib.sha256()
    for path in sorted(path for path in package.folder.rglob("*.py") if path.is_file()):  # no editor's dangling link
        for part in (path.relative_to(package.folder).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return {"version": _version(_distribution(package.name)), **state, "digest": digest.hexdigest()[:16]}


def _distribution(package: str) -> str:
    """The distribution that a package came with, where that is known; else its own name."""
    return (importlib.metadata.packages_distributions().get(package) or [package])[0]


def _state_of(folder: Path, paths: tuple[str, ...]) -> dict[str, Any]:
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--", *paths) if commit else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
