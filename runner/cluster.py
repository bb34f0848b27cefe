"""The cluster section of a configuration: where runs go. Site facts stand in conf/cluster and nowhere else."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from runner.build import check_arguments
from runner.errors import Misuse, nearest


@dataclass(frozen=True, kw_only=True)
class Local:
    """conf/cluster/local.yaml: a pool on this machine."""

    workers: Annotated[int, "1 <= x"] | Literal["auto"] = "auto"
    pack: Annotated[int, "1 <= x"] = 1


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """conf/cluster/slurm.yaml, or a site's own copy of it."""

    time: str | int
    cpus_per_task: Annotated[int, "1 <= x"]
    max_parallel: Annotated[int, "1 <= x"]
    gpus_per_task: Annotated[int, "0 <= x"] = 0
    nodes: Annotated[int, "1 <= x"] = 1
    pack: Annotated[int, "1 <= x"] = 1
    save_s: Annotated[int, "1 <= x <= 65535"] = 90
    partition: str | None = None
    account: str | None = None
    mem: str | int | None = None
    setup: list[str] = field(default_factory=list)


KINDS: dict[str, type] = {"local": Local, "slurm": Slurm}


def cluster(section: dict[str, Any]) -> Local | Slurm:
    """A configuration's cluster section, checked."""
    kind = str(section.get("kind"))
    if kind not in KINDS:
        raise Misuse(f"cluster.kind = {kind!r} is not known.{nearest(kind, KINDS)}")
    options = {name: value for name, value in section.items() if name not in ("name", "kind")}
    check_arguments(options, KINDS[kind], "cluster")
    for name in ("time", "partition", "account", "mem"):
        if re.search(r"\s|^$", str(options.get(name))):
            raise Misuse(f"cluster.{name} = {options[name]!r} should be one word.")
    made: Local | Slurm = KINDS[kind](**options)
    return made


def device_kind(device: str, place: Local | Slurm) -> str:
    """cpu or gpu: where a run with this `trainer.device` (auto, cpu, cuda) will be, as far as one can say before."""
    if device == "cuda" or (device == "auto" and isinstance(place, Slurm) and place.gpus_per_task):
        return "gpu"
    here = device == "auto" and isinstance(place, Local) and (shutil.which("nvidia-smi") or _gpus())
    return "gpu" if here else "cpu"


def parallel(place: Local | Slurm, kind: str, threads: int, devices: int = 1) -> int:
    """About how many runs go at a time on a kind of device, each with so many processes of so many CPU threads."""
    if isinstance(place, Slurm):
        return place.max_parallel * place.pack
    if place.workers != "auto":
        return place.workers
    return max(1, _gpus() // devices * place.pack if kind == "gpu" else cores() // (threads * devices))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> int:
    """NVIDIA devices as Linux's driver lists them, without loading CUDA."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
