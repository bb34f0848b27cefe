"""Run identity: which part of a configuration is science, its key, and the run directory. No torch here.

The key is a hash of everything that can change the number, the seed left out. Options added after records exist are
listed in `NEUTRAL` with the value that equals the behaviour before them; neutral values are left out of the hash, so
that old records keep their keys.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

Config = dict[str, Any]

SCIENCE = ("model", "dataset", "method", "schedule", "task", "precision", "memory_format", "start")

NEUTRAL: dict[str, Any] = {
    "start": None,
    "dataset.train_subset": None,
    "schedule.accumulate": 1,
    "schedule.drop_last": False,
    "schedule.budget": "epochs",
    "schedule.lr_changes": "step",
    "schedule.final_epochs": 0.0,
    "schedule.final_lr": 0.0,
    "schedule.clip": 0.0,
    "dataset.validation": 0,
    "dataset.crop": "padded",
    "model.width": 1.0,
    "model.init": "kaiming_normal",
    "memory_format": "contiguous",
    "method.initial_sparsity": 0.0,
    "model.classifier": "linear",
    "start.initialization": "original",
    "schedule.lr_from_epoch": 0,
    "schedule.extend": 1,
    "schedule.from_epoch": 0,
    "schedule.until_epoch": 0,
    "schedule.lr_epochs": 0,
    "dataset.corrupted_labels": 0,
    "dataset.corruption_seed": 0,
}


def science(config: Config) -> Config:
    """The part of a resolved configuration that determines the number; parents' seeds and machine settings left out."""
    part = {name: config[name] for name in SCIENCE if name in config}
    if start := part.get("start"):
        part["start"] = {
            "parent": science(start["parent"]),
            "checkpoint": start["checkpoint"],
            "take": start["take"],
            "initialization": start.get("initialization", NEUTRAL["start.initialization"]),
        }
    return part


def key(config: Config) -> str:
    """The run's key: 12 hexadecimal digits of the SHA-256 of its canonical science configuration."""
    canonical = json.dumps(_canonical(science(config)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _canonical(value: Any, path: str = "") -> Any:
    if isinstance(value, dict):
        # A parent's science is canonical on its own: its paths start anew.
        inner = {k: "" if f"{path}.{k}" == ".start.parent" else f"{path}.{k}" for k in value}
        return {
            k: _canonical(v, inner[k])
            for k, v in value.items()
            if not (inner[k][1:] in NEUTRAL and v == NEUTRAL[inner[k][1:]])
        }
    if isinstance(value, list | tuple):
        return [_canonical(item, path) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def run_dir(root: str | Path, config: Config) -> Path:
    """<root>/<dataset>/<model>/<method>/<key>/seed<k>."""
    names = [str(config[group]["name"]) for group in ("dataset", "model", "method")]
    return Path(root, *(name.replace("/", "_") for name in names), key(config), f"seed{config['seed']}")


def parent_config(config: Config) -> Config | None:
    """The configuration of the run this one starts from: the parent's science on this run's machine and seed."""
    if not config.get("start"):
        return None
    machine = {name: value for name, value in config.items() if name not in SCIENCE}
    return {**machine, "start": None, **config["start"]["parent"]}
