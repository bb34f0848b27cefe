"""What a run ran on: versions, commit, devices. No torch unless it is loaded already; no secrets, no host names."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "timm", "numpy", "hydra-core", "omegaconf", "scikit-learn")
ROOT = Path(__file__).resolve().parent.parent
CODE = ("conf", "runner", "methods", "models", "data")


def describe(device: str, threads: int) -> dict[str, Any]:
    """The environment record of a run on `device` with `threads` CPU threads."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git": git_state(),
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
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", *CODE) if commit else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
