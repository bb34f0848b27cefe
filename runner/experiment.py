"""The built parts of one run: data, model, method, task, schedule, on their device."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from data.base import Dataset
from data.order import derive
from methods.base import Method
from runner.build import build, check, check_arguments, check_kind
from runner.device import PRECISIONS, Name, choose, reset
from runner.errors import Misuse, nearest
from runner.identity import Config, key
from runner.optim import Schedule
from runner.recorders import check as check_records
from runner.task import Task

# What the runner itself gives to the targets of these sections.
_GIVEN = {
    "model": ("num_classes", "in_shape"),
    "dataset": ("root",),
    "method": (),
    "task": ("num_classes",),
    "logger": ("config", "directory"),
}

_KINDS: dict[str, type] = {"method": Method, "model": nn.Module, "dataset": Dataset}

MEMORY_FORMATS = ("contiguous", "channels_last")


@dataclass(kw_only=True)
class Settings:
    """The machine's side of training (`conf/trainer`): none of it is part of the key."""

    device: Name = "auto"
    devices: Annotated[int, "1 <= x"] = 1
    threads: Annotated[int, "1 <= x"] = 1
    eval_batch_size: Annotated[int, "1 <= x"] = 1000
    compile: bool = False
    checkpoint_seconds: Annotated[float, "0 <= x"] = 60.0
    deterministic: bool = True
    scratch_gib: Annotated[float, "0 < x"] = 48.0
    records: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_records(self.records)


@dataclass
class Experiment:
    """What a trainer needs."""

    seed: int
    key: str
    precision: str
    settings: Settings
    schedule: Schedule
    device: torch.device
    data: Dataset
    task: Task
    method: Method
    model: nn.Module


def validate(config: Config) -> tuple[Settings, Schedule, Method]:
    """Check a whole resolved configuration without loading data or building a model; Misuse says what is wrong."""
    if config["precision"] not in PRECISIONS:
        raise Misuse(f"precision = {config['precision']!r} should be one of {', '.join(PRECISIONS)}.")
    if memory_format(config) not in MEMORY_FORMATS:
        raise Misuse(f"memory_format = {config['memory_format']!r} should be one of {', '.join(MEMORY_FORMATS)}.")
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise Misuse(f"seed = {seed!r} should be a whole number, 0 or above.")
    settings = _dataclass(config, "trainer", Settings)
    for group, kind in _KINDS.items():
        check_kind(config[group], group, kind)
    method: Method = build(config["method"], "method")
    schedule = _dataclass(config, "schedule", Schedule)
    if settings.devices > schedule.batch_size:
        raise Misuse(
            f"trainer.devices = {settings.devices} ranks cannot share batches of schedule.batch_size = "
            f"{schedule.batch_size}; take fewer devices (another batch size is another run)."
        )
    for group, given in _GIVEN.items():
        check(config[group], group, given)
    try:
        method.check(schedule.epochs)
    except ValueError as error:
        raise Misuse(f"method: {error}.") from None
    if config.get("start"):
        _, _, parent = validate({**config, "start": None, **config["start"]["parent"]})
        if (name := config["start"]["checkpoint"]) not in (kept := ("last", *parent.kept)):
            whose = config["start"]["parent"]["method"]["name"]
            raise Misuse(
                f"start.checkpoint = {name!r} should be one that method {whose} keeps: {', '.join(kept)}."
                f"{nearest(name, kept)}"
            )
    return settings, schedule, method


def memory_format(config: Config) -> str:
    """Contiguous in a configuration from before there was a choice."""
    return config.get("memory_format", "contiguous")


def _dataclass(config: Config, group: str, kind: type) -> Any:
    section = {name: value for name, value in config[group].items() if name != "name"}
    check_arguments(section, kind, group)
    return kind(**section)


def make(config: Config) -> Experiment:
    """Build everything from a resolved configuration, from reset random number generators and flags."""
    settings, schedule, method = validate(config)
    device = choose(settings.device, config["precision"])
    reset(settings.threads, settings.deterministic, config["precision"], device.type)
    try:
        data: Dataset = build(config["dataset"], "dataset", root=str(config["data"]["root"]))
    except OSError as error:
        if (root := Path(config["data"]["root"])).is_file():
            raise Misuse(
                f"the data root {str(root)!r} is a file; set data.root or REGROW_DATA to the folder where the data are."
            ) from None
        raise Misuse(f"{error}.") from None
    if data.batch_size not in (None, schedule.batch_size):
        raise Misuse(
            f"schedule.batch_size = {schedule.batch_size}, but the text was cut into {data.batch_size} streams, "
            f"one for each sample of a batch; leave dataset.rows out, which follows the batch size."
        )
    task = build(config["task"], "task", num_classes=data.num_classes)
    # A stage has its parent's initial weights, since it has its seed; unless it is to begin from others.
    other = (config.get("start") or {}).get("initialization") == "random"
    torch.manual_seed(derive(config["seed"], "model", *(["another"] if other else [])))
    model = make_model(config, data, device)
    return Experiment(
        seed=config["seed"],
        key=key(config),
        precision=config["precision"],
        settings=settings,
        schedule=schedule,
        device=device,
        data=data.to(device),
        task=task,
        method=method,
        model=model,
    )


def make_model(config: Config, data: Dataset, device: torch.device) -> nn.Module:
    """The network of a configuration for these data, with initial weights from torch's generator as it stands."""
    model: nn.Module = build(config["model"], "model", num_classes=data.num_classes, in_shape=data.in_shape)
    if memory_format(config) == "channels_last":
        # Activations only: weights stay contiguous, since masks address them by flat position.
        model.register_forward_pre_hook(_channels_last)
    return model.to(device)


def without_hooks(model: nn.Module) -> nn.Module:
    """The network without what `make_model` hung on it: it takes images in any memory format, for itself."""
    for number, hook in list(model._forward_pre_hooks.items()):
        if hook is _channels_last:
            del model._forward_pre_hooks[number]
    return model


def _channels_last(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    images, *rest = inputs
    return (images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images, *rest)
