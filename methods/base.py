"""The method contract: what the trainer asks of a sparse-training method, and what it offers it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from methods.allocation import prunable_weights
from methods.knob import Knob, share
from methods.masks import Masks
from methods.passes import DENSE, Passes, count, within

Sparsity = Annotated[float, "0 <= x < 1"]


def _untimed(name: str) -> AbstractContextManager[None]:
    return nullcontext()


def _no_schedule(step: float) -> float:
    raise ValueError("the learning rate of other steps is asked for, but there is no schedule here")


def _no_data(batches: int) -> dict[str, Tensor]:
    raise ValueError("gradients over training batches are asked for, but there are none here")


def _no_samples(samples: int, batch: int) -> Iterator[dict[str, Tensor]]:
    raise ValueError("gradients over training samples are asked for, but there are none here")


@dataclass
class Context:
    """Where the run stands, handed to every hook.

    `step` counts finished optimizer steps when a step begins (0 at the first) and keeps that value until it has ended;
    `epoch` is the current epoch, from 1. `rng` is a CPU generator that is identical on every rank. `mean_grads(n)` is
    the mean gradient of the loss over n training batches at the weights as they are, by parameter name, the same on
    every rank; it leaves no trace in the run. `grad_samples(n, batch)` gives n such gradients one by one, each the mean
    over `batch` training samples, the same ones whenever it is asked in the same step. `scratch`: the bytes that a
    method's measurements may take at a time. `learning_rate(t)` is the schedule's rate after t finished steps, a
    float in [0, total_steps); `lr` is that of the present step. Within `timed(name)` happens what is recorded as
    time/NAME_ms: seldom, since the device must finish first what it is at.
    """

    optimizer: torch.optim.Optimizer
    rng: torch.Generator
    total_steps: int
    steps_per_epoch: int
    step: int = 0
    epoch: int = 1
    lr: float = 0.0
    mean_grads: Callable[[int], dict[str, Tensor]] = _no_data
    grad_samples: Callable[[int, int], Iterator[dict[str, Tensor]]] = _no_samples
    scratch: float = math.inf
    learning_rate: Callable[[float], float] = _no_schedule
    timed: Callable[[str], AbstractContextManager[None]] = _untimed


@dataclass(kw_only=True)
class Method:
    """Dense training, and the base of every method: a hook that does nothing is not overridden.

    Fields are the hyperparameters, named as in `conf/method/*.yaml`. `keep_dense` lists the layers (shell patterns of
    names) that are never pruned; all other convolutions and linear layers are. Densities count those others only.
    """

    keep_dense: list[str] = field(default_factory=list)

    #: The hyperparameters that calibration may turn, one at a time, of a method that cannot be told its sparsity.
    knobs: ClassVar[tuple[Knob, ...]] = ()

    #: The names that `keeps` may give: checkpoints, beside the last one, that a stage may start from.
    kept: ClassVar[tuple[str, ...]] = ()

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

    def keeps(self) -> str | None:
        """At an epoch's end: the name under which its weights are kept if no epoch of that name had a better test
        metric, or None.
        """
        return None

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

    def diagnostics(self) -> dict[str, float]:
        """At an epoch's end: what recorders may show of the method's inner life, by the name of the metric."""
        return {}

    def unpruned(self) -> AbstractContextManager[None] | None:
        """Within it the model computes in inference with all the weights that it has; None where it always does."""
        return None

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        """What a training step computes with, asked at the end of every epoch and charged for all of its samples.

        `layers`: per prunable weight the elements kept (mask), nonzero (as the network computes) and total. The rule is
        the method's own, as its paper counts: dense here, 3 F; `within(count(layers, "kept"))` is 3 f of the mask;
        `Passes(kept, kept)` has a dense gradient of the weights, 2 f + F; `mixed` averages over steps of two kinds.
        """
        return DENSE

    def finalize(self, model: nn.Module, compact: bool = False, example: Tensor | None = None) -> nn.Module:
        """The model with plain (sparse) weights and the same outputs.

        `compact`: a smaller dense copy for inference, without the filters that whole-filter masks drop, its outputs
        the same up to rounding (`methods.compaction`); `example` is then a batch of inputs, whose shape is needed.
        ValueError when the masks do not drop whole filters, or for an architecture that cannot be compacted.
        """
        if not compact:
            return model
        from methods.compaction import compacted

        masks = self.masks()
        mixed = [
            name for name, mask in masks.items() if not torch.equal(mask.flatten(1).all(1), mask.flatten(1).any(1))
        ]
        if mixed or not masks:
            why = f"the mask of {mixed[0]} drops single weights" if mixed else "it has no masks"
            raise ValueError(f"{type(self).__name__} leaves no whole filters out ({why}), so nothing can be compacted")
        if example is None:
            raise ValueError("finalize(compact=True) needs example=, a batch of inputs")
        return compacted(model, example)


@dataclass(kw_only=True)
class Masked(Method):
    """A method that enforces masks on the weights themselves.

    Gradients of dropped weights are masked before the step (no momentum builds up behind the mask) and weights are
    projected after it (momentum left from before a drop cannot leak back).
    """

    sparsity: Sparsity

    # What these methods are told is the share of pruned layers' weights; another target must be searched for.
    knobs: ClassVar[tuple[Knob, ...]] = share()

    #: Whether a weight that is dropped never comes back, or without the momentum that it had: a matter of speed.
    forgets = False

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
        self.mask.hold(ctx.optimizer, self.forgets)

    def masks(self) -> dict[str, Tensor]:
        return self.mask.as_dict()

    def mask_changes(self) -> int:
        return self.mask.changes()

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        return within(count(layers, "kept"))

    def adopt(self, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        self.mask.load(masks)
        self.adopted = True

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.mask.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mask.load(state["masks"])
