"""What planned runs will cost: seconds from recorded throughput, else from FLOPs; which basis it was is always said.

Torch-free. A training's FLOPs are three times those of dense inference (one forward and two in the backward pass), as
AC/DC and RigL count, on all samples of all epochs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from results import architecture
from results.record import SEED_DIRECTORY, SEED_FILE, Record, Unusable, read_directory, read_packed
from runner.errors import Misuse

#: Counts multiplications and additions apart, as hardware is rated.
CONVENTION = "2xmac"
#: Of one dataset, model and method so many different keys are read: a sample, since a root may hold thousands of runs.
KEYS = 8


@dataclass(frozen=True)
class Measured:
    """How fast a completed run was. `request`: its architecture's; `flops`: of training on one sample, if known."""

    name: str  #: dataset/model
    method: str
    device: str  #: cpu or gpu
    precision: str
    threads: int
    request: str
    sample_s: float  #: seconds of training per sample
    epoch_s: float  #: seconds per epoch beyond them: evaluation, mostly
    flops: float | None


@dataclass(frozen=True)
class Estimate:
    """Of one run. `flops` of its whole training, None where the architecture has no record; `basis` in words."""

    seconds: float | None
    flops: float | None
    basis: str


def device_kind(device: str) -> str:
    """cpu or gpu, of a device as environments name it."""
    return "cpu" if device.startswith("cpu") else "gpu"


def training_flops(config: Mapping[str, Any]) -> float | None:
    """3 x dense inference FLOPs of one sample; None without a record of the architecture."""
    known = architecture.record(config)
    return None if known is None else 3.0 * known.flops[CONVENTION]


def lengthened(config: Mapping[str, Any]) -> float:
    """How many times its epochs a run trains whose schedule has a budget of FLOPs, at its density in every layer."""
    if config["schedule"].get("budget", "epochs") == "epochs":
        return 1.0
    return 1 / (1 - float(config["method"].get("sparsity", 0.0)))


def samples(config: Mapping[str, Any]) -> int | None:
    """Training samples per epoch; None for an unknown dataset."""
    given = architecture.inputs(config["dataset"])
    if given is None:
        return None
    return min(given.train_size, config["dataset"].get("train_subset") or given.train_size)


class Costs:
    """Estimates from what some runs have measured, for runs on one kind of device."""

    def __init__(self, measured: Iterable[Measured], device: str) -> None:
        self.device = device
        self.measured = [each for each in measured if each.device == device]
        self.known: dict[tuple[Any, ...], Estimate] = {}

    def of(self, config: Mapping[str, Any], key: str) -> Estimate:
        """The estimate for a run with this key; the same for all seeds."""
        place = (key, config["precision"], config["trainer"]["threads"])
        if place not in self.known:
            self.known[place] = self._of(config)
        return self.known[place]

    def _of(self, config: Mapping[str, Any]) -> Estimate:
        count, epochs = samples(config), float(config["schedule"]["epochs"]) * lengthened(config)
        asked = architecture.request(config)
        if count is None or asked is None:
            return Estimate(None, None, f"the size of the dataset {config['dataset']['name']} is not known")
        per_sample = training_flops(config)
        flops = None if per_sample is None else per_sample * count * epochs
        if same := self._like(config, asked["file"]):
            seconds = epochs * median(count * each.sample_s + each.epoch_s for each in same)
            return Estimate(seconds, flops, self._words(same, config))
        if per_sample is None:
            return Estimate(None, None, f"no throughput recorded, and no FLOPs: `{architecture.WRITE}`")
        rated = [each for each in self.measured if each.flops]
        if not rated:
            return Estimate(None, flops, "no throughput recorded yet")
        rated = [each for each in rated if each.precision == config["precision"]] or rated
        nearest = min(rated, key=lambda each: abs(math.log((each.flops or 1) / per_sample)))
        rates = [(each.flops or 0) / each.sample_s for each in rated if each.request == nearest.request]
        rate = median(rates)
        basis = f"FLOPs, at the {quantity(rate, 'FLOP/s')} of {nearest.name} on {self.device} in {nearest.precision}"
        return Estimate(per_sample * count * epochs / rate, flops, basis)

    def _like(self, config: Mapping[str, Any], request: str) -> list[Measured]:
        """Of the runs of the same dataset and architecture those nearest in method, precision and threads."""
        name = f"{config['dataset']['name']}/{config['model']['name']}"
        wanted = config["method"]["name"], config["precision"], config["trainer"]["threads"]

        def nearness(each: Measured) -> tuple[bool, ...]:
            return tuple(a == b for a, b in zip((each.method, each.precision, each.threads), wanted, strict=True))

        same = [each for each in self.measured if each.name == name and each.request == request]
        best = max(map(nearness, same), default=None)
        return [each for each in same if nearness(each) == best]

    def _words(self, same: Sequence[Measured], config: Mapping[str, Any]) -> str:
        differs = []
        if same[0].method != config["method"]["name"]:
            differs.append("with " + " and ".join(sorted({each.method for each in same})))
        if same[0].precision != config["precision"]:
            differs.append("in " + " and ".join(sorted({each.precision for each in same})))
        if same[0].threads != config["trainer"]["threads"]:
            differs.append("with another number of threads")
        return " ".join((f"recorded throughput on {self.device}", *differs))


def measured(roots: Iterable[Path]) -> list[Measured]:
    """What completed runs below the roots (run directories and packed records) tell; a few of each kind are read."""
    found: list[Measured] = []
    for root in roots:
        for method in sorted(root.glob("*/*/*")):
            if method.is_dir() and method.relative_to(root).parts[0] not in ("submissions", "rerun"):
                each = (_one(key) for key in sorted(method.iterdir()))
                found += itertools.islice((one for one in each if one is not None), KEYS)
    return found


def _one(folder: Path) -> Measured | None:
    """The first completed seed of a key; None where there is none."""
    if not folder.is_dir():
        return None
    for path in sorted(folder.iterdir()):
        whole = SEED_DIRECTORY.fullmatch(path.name) and (path / "summary.json").exists()
        if not whole and not SEED_FILE.fullmatch(path.name):
            continue
        try:
            record, _ = read_directory(path) if whole else read_packed(path)
            if record.status == "completed":
                return _measure(record)
        except (Unusable, Misuse, KeyError, TypeError, ValueError):
            continue  # a record that cannot be read estimates nothing; tables and runs.py say what is wrong with it
    return None


def _measure(record: Record) -> Measured | None:
    config, summary = record.config, record.summary or {}
    final, epochs = summary["final"], summary["epochs"]
    count, asked = samples(config), architecture.request(config)
    rate, wall = float(final["time/samples_per_s"]), float(summary["wall_s"])
    if count is None or asked is None or not (math.isfinite(rate) and rate > 0 and epochs):
        return None
    return Measured(
        name=f"{config['dataset']['name']}/{config['model']['name']}",
        method=str(config["method"]["name"]),
        device=device_kind(str(record.environment["device"])),
        precision=str(config["precision"]),
        threads=int(record.environment["threads"]),
        request=asked["file"],
        sample_s=1 / rate,
        epoch_s=max(0.0, wall / epochs - count / rate),
        flops=training_flops(config),
    )


def quantity(value: float, unit: str) -> str:
    """3.1e18 FLOPs as 3.1 EFLOPs: two digits, the prefix that leaves 1 to 999 before it."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z")
    shown = float(f"{value:.2g}")
    power = min(len(prefixes) - 1, math.floor(math.log10(shown) / 3 + 1e-9)) if shown >= 1 else 0
    return f"{shown / 1000**power:g} {prefixes[power]}{unit}"
