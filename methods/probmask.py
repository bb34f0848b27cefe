"""ProbMask: probabilities of masks, trained under one budget for the whole network (Zhou et al. 2021)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from methods.allocation import kept_of
from methods.base import Context, Sparsity
from methods.knob import Knob, share
from methods.masks import Masks, top_mask
from methods.passes import DENSE, Passes
from methods.reparam import Feedback
from methods.schedules import Epochs, cubic

#: Added to what a logarithm is taken of, and to what is divided by (official code).
TINY = 1e-20


@dataclass(kw_only=True)
class ProbMask(Feedback):
    """Every weight is kept with a probability s of its own; s is trained beside w and held within a budget.

    Zhou et al. 2021: training computes with m * w, m = sigmoid((log s / (1 - s) + logistic noise) / tau) drawn anew for
    every step, a relaxed Bernoulli(s) variable (Gumbel-softmax) whose temperature tau falls linearly from 1 to
    `temperature` over the training. s starts at 1 and has an optimizer of its own, Adam with the learning rate
    `score_lr`, which a cosine takes to 0. After each of its steps s is projected onto {0 <= s <= 1, sum s <= K}
    (`projected`): the budget K, over all layers together, falls from all n weights along a cubic between `start_epoch`
    and `end_epoch` to (1 - `sparsity`) n. Thus s is driven to 0 and 1.

    Between steps the network has a mask without relaxation: a draw from Bernoulli(s) (`inference` "sample", theirs),
    always with the same random numbers, so that it changes with s alone; or the K largest s ("top"), exactly. How many
    a draw keeps is K on average.

    `clip`: the norm that the gradients of s and of all trained parameters together are scaled down to; 0: never.
    The official code draws two masks per step and averages their gradients (one here); reads budget and temperature
    once per epoch (every step here); at the end takes the best on the training data of ten draws, then fine-tunes
    (conf/method/probmask_finetuned.yaml; one draw here).
    """

    sparsity: Sparsity
    end_epoch: Epochs
    start_epoch: Epochs = 0.0
    score_lr: Annotated[float, "0 < x"] = 6e-3
    temperature: Annotated[float, "0 < x <= 1"] = 0.03
    clip: Annotated[float, "0 <= x"] = 0.0
    inference: Literal["sample", "top"] = "sample"

    knobs: ClassVar[tuple[Knob, ...]] = share()

    def check(self, epochs: float) -> None:
        if not self.start_epoch <= self.end_epoch <= epochs:
            raise ValueError(
                f"the budget's fall from epoch {self.start_epoch:g} to epoch {self.end_epoch:g} does not lie within "
                f"the run's {epochs:g} epochs, or ends before it starts"
            )

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        self.mask = Masks(self.weights)
        self.sizes = [w.numel() for w in self.computed]
        self.s = nn.Parameter(self.computed[0].new_ones(sum(self.sizes)))  # of all layers, one after another
        self.adam = torch.optim.Adam([self.s], lr=self.score_lr)
        self.soft = torch.ones_like(self.s.detach())
        self.finite = torch.ones(())
        self.seed = 0
        self.drawn: Tensor | None = None  # by that seed, once for all steps
        return model

    def begin(self, ctx: Context) -> None:
        self.seed, self.drawn = int(torch.randint(2**62, (), generator=ctx.rng)), None
        super().begin(ctx)

    def ramped(self, ctx: Context, step: int) -> float:
        """The sparsity that the budget leaves after `step` steps."""
        epoch, length = step / ctx.steps_per_epoch, self.end_epoch - self.start_epoch
        if epoch >= self.end_epoch:
            return self.sparsity
        return cubic(0.0, self.sparsity, (epoch - self.start_epoch) / length)

    def sharpness(self, ctx: Context) -> float:
        """1 / tau in the present step."""
        return 1 / (self.temperature + (1 - self.temperature) * (1 - ctx.step / ctx.total_steps))

    @torch.no_grad()
    def before_forward(self, ctx: Context) -> None:
        seed = int(torch.randint(2**62, (), generator=ctx.rng))
        self.soft = relaxed(self.s.detach(), self.uniform(seed), self.sharpness(ctx))
        torch._foreach_copy_(self.computed, self.dense)
        torch._foreach_mul_(self.computed, self.by_layer(self.soft))

    def uniform(self, seed: int) -> Tensor:
        """A number in [0, 1) for every weight, drawn where the weights are; the same on every rank."""
        rng = torch.Generator(self.s.device).manual_seed(seed)
        return torch.rand(self.s.shape, generator=rng, dtype=self.s.dtype, device=self.s.device)

    def by_layer(self, flat: Tensor) -> list[Tensor]:
        """Views of a vector over all weights, in their shapes."""
        return [part.view(w.shape) for part, w in zip(flat.split(self.sizes), self.computed, strict=True)]

    @torch.no_grad()
    def before_step(self, ctx: Context) -> bool:
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.computed]
        products = torch.cat([(g * w).reshape(-1) for g, w in zip(grads, self.dense, strict=True)])
        self.s.grad = products.mul_(slope(self.soft, self.s.detach(), self.sharpness(ctx)))
        torch._foreach_mul_(grads, self.by_layer(self.soft))
        trained = [p for group in ctx.optimizer.param_groups for p in group["params"]]
        self.finite = nn.utils.clip_grad_norm_([*trained, self.s], self.clip or math.inf).isfinite()
        return super().before_step(ctx)

    @torch.no_grad()
    def after_step(self, ctx: Context) -> None:
        if self.finite:  # else fp16 overflowed, and the step of w is left out too
            self.adam.param_groups[0]["lr"] = self.score_lr * 0.5 * (1 + math.cos(math.pi * ctx.step / ctx.total_steps))
            self.adam.step()
        self.s.copy_(projected(self.s, (1 - self.ramped(ctx, ctx.step + 1)) * self.s.numel()))
        super().after_step(ctx)

    @torch.no_grad()
    def refresh(self, ctx: Context, step: int) -> None:
        if self.inference == "sample":
            if self.drawn is None:
                self.drawn = self.uniform(self.seed)
            kept = self.drawn < self.s
        else:
            kept = top_mask(self.s, kept_of(self.s.numel(), self.ramped(ctx, step)))
        for index, mask in enumerate(kept.split(self.sizes)):
            self.mask.set(index, mask)

    def compress(self) -> None:
        self.mask.project()

    def masks(self) -> dict[str, Tensor]:
        return self.mask.as_dict()

    def mask_changes(self) -> int:
        return self.mask.changes()

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        """The relaxed mask is nowhere zero, and the gradients of w and s follow from one product."""
        return DENSE

    def diagnostics(self) -> dict[str, float]:
        """The share of probabilities that are neither 0 nor 1, within 0.01."""
        inside = (self.s > 0.01) & (self.s < 0.99)
        return {"undecided": float(inside.count_nonzero()) / self.s.numel()}

    def state_dict(self) -> dict[str, Any]:
        scores = {"s": self.s.detach(), **self.adam.state[self.s]}
        return {**super().state_dict(), "masks": self.mask.as_dict(), "scores": scores, "seed": self.seed}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.mask.load(state["masks"])
        moments = dict(state["scores"])
        self.s.copy_(moments.pop("s"))
        for name, value in moments.items():  # Adam counts its steps on the CPU
            self.adam.state[self.s][name] = value.clone() if value.dim() == 0 else value.to(self.s.device, copy=True)
        self.seed, self.drawn = state["seed"], None


def relaxed(s: Tensor, uniform: Tensor, sharpness: float) -> Tensor:
    """sigmoid((log s / (1 - s) + log u / (1 - u)) sharpness), whose second term is distributed as the difference of two
    Gumbel variables.
    """
    other = (-uniform).log1p_()  # in place: of big networks fresh memory costs as much as what is computed in it
    noise = (uniform + TINY).log_().sub_(other)
    torch.sub(1, s, out=other).add_(TINY).log_()
    return (s + TINY).log_().sub_(other).add_(noise).mul_(sharpness).sigmoid_()


def slope(relaxed: Tensor, s: Tensor, sharpness: float) -> Tensor:
    """The derivative of `relaxed` with respect to s; 0 where rounding has made it 0 or 1."""
    other = (1 - s).add_(TINY).reciprocal_()
    both = (s + TINY).reciprocal_().add_(other)
    torch.sub(1, relaxed, out=other)
    return (sharpness * relaxed).mul_(other).mul_(both)


def projected(z: Tensor, budget: float) -> Tensor:
    """The point of {0 <= s <= 1, sum s <= budget} nearest to z: clip(z - v, 0, 1), v >= 0 the least number of z's
    precision that will do.
    """
    return (z - (searched if z.device.type == "cpu" else bisected)(z, budget)).clamp_(0, 1)


def bisected(z: Tensor, budget: float) -> Tensor:
    """That v, by bisection to the sixtieth bit, without waiting for the device."""
    low = torch.zeros((), dtype=torch.float64, device=z.device)
    high = z.max().double().clamp(min=0)
    fits = total(z, low) <= budget
    for _ in range(60):
        v = 0.5 * (low + high)
        over = total(z, v) > budget
        low, high = torch.where(over, v, low), torch.where(over, high, v)
    return torch.where(fits, 0, high).to(z)


def searched(z: Tensor, budget: float) -> Tensor:
    """That v, by Newton's steps within bounds that close in: a few passes over z where bisection takes sixty."""
    kind = z.numpy().dtype.type
    low, high, v = kind(-1), max(kind(z.max()), kind(0)), kind(0)
    for turn in itertools.count():
        over = float(total(z, torch.tensor(v))) - budget
        low, high = (v, high) if over > 0 else (low, v)
        if np.nextafter(low, high) >= high or v <= 0 >= over or high - low < np.finfo(kind).tiny:
            return torch.tensor(high)
        inside = int(((z > v) & (z < v + 1)).count_nonzero())
        guess = kind(v + over / inside) if inside and turn < _STEPS else kind(low / 2 + high / 2)
        if guess == v:  # less than one number away
            guess = np.nextafter(v, high if over > 0 else low)
        v = guess if low < guess < high else max(kind(low / 2 + high / 2), np.nextafter(low, high))
    raise AssertionError("the bounds meet")


_STEPS = 12  # of Newton's, before the rest is halved


def total(z: Tensor, v: Tensor) -> Tensor:
    """sum clip(z - v, 0, 1), in float64."""
    return (z - v.to(z)).clamp_(0, 1).sum(dtype=torch.float64)
