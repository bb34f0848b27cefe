"""The schedule section as objects: optimizer, learning rate, L1 term."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import nn

from methods.allocation import PRUNABLE
from methods.base import Method
from methods.schedules import EpochRanges, Epochs, LearningRate, learning_rate, stretch
from runner.build import build, check
from runner.errors import Misuse


@dataclass(kw_only=True)
class Schedule:
    """How long, in which batches and with which step size a run trains (`conf/schedule`).

    `extend`, `from_epoch` and `until_epoch` have been applied when the configuration was composed: the epochs here are
    those of the longer training and of the run's own part of it; `lr_epochs` are those of all of it, 0 without parts.
    """

    epochs: Annotated[int, "1 <= x"]
    batch_size: Annotated[int, "1 <= x"]
    lr: Annotated[EpochRanges | str | float, "0 <= x"]
    optimizer: dict[str, Any]
    decay: Literal["none", "step", "cosine"] = "none"
    milestones: list[Epochs] = field(default_factory=list)
    gamma: Annotated[float, "0 < x <= 1"] = 0.1
    lr_end: Annotated[float, "0 <= x"] = 0.0
    warmup_epochs: Epochs = 0.0
    warmup_from: Annotated[float, "0 <= x"] = 0.0
    final_epochs: Epochs = 0.0
    final_lr: Annotated[float, "0 <= x"] = 0.0
    lr_from_epoch: Epochs = 0.0
    lr_epochs: Epochs = 0.0
    from_epoch: Epochs = 0.0
    until_epoch: Epochs = 0.0
    extend: Annotated[float, "0 < x"] = 1.0
    lr_changes: Literal["step", "epoch"] = "step"
    l1: Annotated[float, "0 <= x"] = 0.0
    l2: Annotated[float, "0 <= x"] = 0.0
    clip: Annotated[float, "0 <= x"] = 0.0
    drop_last: bool = False
    accumulate: Annotated[int, "1 <= x"] = 1
    budget: Literal["epochs", "flops"] = "epochs"

    def __post_init__(self) -> None:
        whole = self.lr_epochs or self.lr_from_epoch + self.epochs
        if self.warmup_epochs and self.warmup_epochs >= whole:
            raise Misuse(
                f"schedule.warmup_epochs = {self.warmup_epochs:g} should be below schedule.epochs = {whole:g}."
            )
        # null leaves an option at the optimizer's own default: what another optimizer's recipe says can be undone.
        self.optimizer = {name: value for name, value in self.optimizer.items() if value is not None}
        ranges = EpochRanges.parse(self.lr)  # type: ignore[arg-type]
        if ranges.last_epoch < self.lr_from_epoch + self.epochs:
            raise Misuse(
                f"schedule.lr ends at epoch {ranges.last_epoch}, but the run's learning rates are those of epochs "
                f"{self.lr_from_epoch:g} to {self.lr_from_epoch + self.epochs:g}; extend its last range."
            )
        if self.final_epochs and self.warmup_epochs + self.final_epochs >= whole:
            raise Misuse(
                f"schedule.final_epochs = {self.final_epochs:g} and the {self.warmup_epochs:g} epochs of warm-up leave "
                f"nothing of schedule.epochs = {whole:g}."
            )
        check(self.optimizer, "schedule.optimizer", ("params", "lr", "weight_decay"))

    @property
    def whole(self) -> bool:
        """Whether the run ends where its training does."""
        return not self.lr_epochs or self.lr_from_epoch + self.epochs >= self.lr_epochs

    def stretched(self, epochs: int) -> Schedule:
        """The same schedule over so many epochs."""
        return Schedule(**stretch(asdict(self), epochs / self.epochs))

    def learning_rate(self) -> LearningRate:
        return learning_rate(vars(self))

    def make_optimizer(self, method: Method, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the method's parameter groups; l2 is its weight decay, on every parameter."""
        groups = method.param_groups(model)
        first = self.learning_rate().at(0.0)
        return build(self.optimizer, "schedule.optimizer", params=groups, lr=first, weight_decay=self.l2)


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give fused SGD a momentum of zeros before its first step.

    torch (2.15) takes memory as it finds it for the momentum, for the kernel to fill: where a gradient scaler has the
    kernel skip the first step, that memory stays as it is and is added to the second.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["fused"] and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


class L1:
    """Adds `strength` * sign(w) to the gradient of convolution and linear weights: the gradient of strength * |w|."""

    def __init__(self, strength: float, model: nn.Module) -> None:
        self.strength = strength
        self.weights = [m.weight for m in model.modules() if isinstance(m, PRUNABLE)]

    @torch.no_grad()
    def add(self) -> None:
        if self.strength:
            pairs = [(w, w.grad) for w in self.weights if w.grad is not None]
            signs = torch._foreach_sign([w for w, _ in pairs])
            torch._foreach_add_([g for _, g in pairs], signs, alpha=self.strength)
