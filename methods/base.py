"""The method contract: what the trainer asks of a sparse-training method, and what it offers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from methods.allocation import prunable_weights
from methods.knob import Knob
from methods.masks import Masks

Sparsity = Annotated[float, "0 <= x < 1"]


def _no_data(batches: int) -> dict[str, Tensor]:
    raise ValueError("gradients over training batches are asked for, but there are none here")


@dataclass
class Context:
    """Where the run stands, handed to every hook.

    `step` counts finished optimizer steps when a step begins (0 at the first) and keeps that value until it has ended;
    `epoch` is the current epoch, from 1. `rng` is a CPU generator that is identical on every rank. `mean_grads(n)` is
    the mean gradient of the loss over n training batches at the weights as they are, by parameter name, the same on
    every rank; it leaves no trace in the run.
    """

    optimizer: torch.optim.Optimizer
    rng: torch.Generator
    total_steps: int
    steps_per_epoch: int
    step: int = 0
    epoch: int = 1
    lr: float = 0.0
    mean_grads: Callable[[int], dict[str, Tensor]] = _no_data


@dataclass(kw_only=True)
class Method:
    """Dense training, and the base of every method: a hook that does nothing is not overridden.

    Fields are the hyperparameters, named as in `conf/method/*.yaml`. `keep_dense` lists the layers (shell patterns of
    names) that are never pruned; all other convolutions and linear layers are. Densities count those others only.
    """

    keep_dense: list[str] = field(default_factory=list)

    #: The hyperparameter that calibration turns, of a method that cannot be told its sparsity.
    knob: ClassVar[Knob | None] = None

    def check(self, epochs: float) -> None:
        """Raise ValueError when the hyperparameters do not fit a run of that many epochs. Runs before anything else."""

    def setup(self, model: nn.Module) -> nn.Module:
        """Before the optimizer is made: find the weights; surgery, new parameters, freezing."""
        self.weights = self.find(model)
        return model

    def find(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Name -> weight of what this method may prune."""
        return prunable_weights(model, self.keep_dense)

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def begin(self, ctx: Context) -> None:
        """Before the first step of a new run (not of a resumed one)."""

    def before_forward(self, ctx: Context) -> None:
        """Before the forward pass of every step."""

    def on_epoch(self, ctx: Context) -> None:
        """Before the first step of every epoch."""

    def penalty(self, ctx: Context) -> Tensor | None:
        """A term added to the loss."""
        return None

    def before_step(self, ctx: Context) -> bool:
        """Gradients are synchronised and unscaled; returning False leaves out the optimizer step."""
        return True

    def after_step(self, ctx: Context) -> None:
        """After the optimizer step."""

    def masks(self) -> dict[str, Tensor]:
        """Name -> boolean mask: the enforced support. A weight that is not listed is dense."""
        return {}

    def mask_changes(self) -> int:
        """A number that is another one after every change of a mask; asked after each step, so it must be cheap."""
        return 0

    def replicated(self) -> dict[str, Any]:
        """What must be the same on every rank, compared after a change of the masks: masks, thresholds, scores.

        Tensors and numbers, however nested. Here: the masks and the state.
        """
        return {"masks": self.masks(), **self.state_dict()}

    def adopt(self, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Start from the masks of a parent run (a stage that takes its parent's mask). Called before `begin`.

        `weights`: the parent's prunable weights at its end, which the model need not have.
        """
        raise ValueError(f"{type(self).__name__} has no masks to take over from a parent run")

    def state_dict(self) -> dict[str, Any]:
        """Everything, besides model and optimizer, that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""

    def effective(self) -> dict[str, Tensor]:
        """Name -> the weights the network computes with, of every prunable weight."""
        return {name: weight.detach() for name, weight in self.weights.items()}

    def distance(self) -> float | None:
        """||w - C(w)||^2 / ||w||^2 where weights w are trained and C(w) computes; None where they are the same."""
        return None

    def finalize(self, model: nn.Module) -> nn.Module:
        """The model with plain (sparse) weights and the same outputs."""
        return model


@dataclass(kw_only=True)
class Masked(Method):
    """A method that enforces masks on the weights themselves.

    Gradients of dropped weights are masked before the step (no momentum builds up behind the mask) and weights are
    projected after it (momentum left from before a drop cannot leak back).
    """

    sparsity: Sparsity

    # What these methods are told is the share of pruned layers' weights; another target must be searched for.
    knob: ClassVar[Knob | None] = Knob(option="sparsity", low=0.0, high=0.9999, guess=0.9, scale="linear")

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        if not self.weights:
            raise ValueError("the model has no convolution or linear layer left to prune; check keep_dense")
        self.mask = Masks(self.weights)
        self.adopted = False
        return model

    def begin(self, ctx: Context) -> None:
        self.mask.project()

    def before_step(self, ctx: Context) -> bool:
        self.mask.mask_grads()
        return True

    def after_step(self, ctx: Context) -> None:
        self.mask.project()

    def masks(self) -> dict[str, Tensor]:
        return self.mask.as_dict()

    def mask_changes(self) -> int:
        return self.mask.changes()

    def adopt(self, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        self.mask.load(masks)
        self.adopted = True

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.mask.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mask.load(state["masks"])
