"""DPF: dynamic model pruning with feedback (Lin et al. 2020), of single weights or of whole filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.allocation import kept_of
from methods.base import Context, Sparsity
from methods.knob import Knob, share
from methods.masks import Masks, top_mask
from methods.passes import Passes, count
from methods.ranking import Ranking, ranked, top_over_all
from methods.reparam import Feedback
from methods.schedules import Epochs, cubic


@dataclass(kw_only=True)
class DPF(Feedback):
    """Gradients at the masked weights m * w update all of w; the mask is magnitude's and is chosen anew ever again.

    Lin et al. 2020, algorithm 1: every `period` steps t (p | t), from the first, m keeps the largest |w| of the dense
    weights at sparsity s_t; a dropped weight that grows under the feedback comes back with its value. s_t follows Zhu
    & Gupta's cubic from `initial_sparsity` at `start_epoch` to `sparsity` at `end_epoch` (A.2: the second decay of the
    learning rate), read at step t.
    `allocation`: "global" over all pruned layers, the paper's; "uniform" or "erk" within layers (figure 9).

    Where the paper is silent: kept counts are rounded to the nearest integer, and if no refresh falls between the
    ramp's end and the run's (a profile's short run), one more follows the last step, so that the target is reached.
    """

    sparsity: Sparsity
    end_epoch: Epochs
    period: Annotated[int, "1 <= x"] = 16
    start_epoch: Epochs = 0.0
    initial_sparsity: Sparsity = 0.0
    allocation: Ranking = "global"

    knobs: ClassVar[tuple[Knob, ...]] = share()

    def check(self, epochs: float) -> None:
        if self.initial_sparsity > self.sparsity:
            raise ValueError(f"initial_sparsity = {self.initial_sparsity:g} exceeds sparsity = {self.sparsity:g}")
        if not self.start_epoch <= self.end_epoch <= epochs:
            raise ValueError(
                f"the ramp from epoch {self.start_epoch:g} to epoch {self.end_epoch:g} does not lie within the run's "
                f"{epochs:g} epochs, or ends before it starts"
            )

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        self.mask = Masks(self.weights)
        return model

    def compress(self) -> None:
        self.mask.project()

    def refresh(self, ctx: Context, step: int) -> None:
        last = step == ctx.total_steps
        late = last and self.ramped(ctx, step - step % self.period) < self.sparsity
        if step % self.period == 0 or late:
            for index, mask in enumerate(self.choose(self.sparsity if last else self.ramped(ctx, step))):
                self.mask.set(index, mask)

    def ramped(self, ctx: Context, step: int) -> float:
        """The sparsity at the beginning of `step`."""
        epoch, length = step / ctx.steps_per_epoch, self.end_epoch - self.start_epoch
        if epoch >= self.end_epoch:
            return self.sparsity
        return cubic(self.initial_sparsity, self.sparsity, (epoch - self.start_epoch) / length)

    def choose(self, sparsity: float) -> list[Tensor]:
        """Flat boolean masks of the weights to keep at `sparsity`."""
        shapes = [tuple(w.shape) for w in self.dense]
        return ranked(torch._foreach_abs(self.dense), shapes, self.allocation, sparsity)

    def masks(self) -> dict[str, Tensor]:
        return self.mask.as_dict()

    def mask_changes(self) -> int:
        return self.mask.changes()

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        kept = count(layers, "kept")
        return Passes(forward=kept, error=kept)  # the gradient of all weights is applied: section 4, 2 f + F

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masks": self.mask.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.mask.load(state["masks"])


@dataclass(kw_only=True)
class StructuredDPF(DPF):
    """DPF that keeps and drops whole filters (the weights of one output channel), ranked by their l2 norm.

    Lin et al. 2020, section 6 ("extension to structured pruning") and table 5. `sparsity` counts filters of all pruned
    layers; with `allocation` "global" norms are compared across layers as they are, so that whole layers may vanish;
    "uniform" ranks within layers. What follows a filter (its batch norm, the next layer's input channel) stays.
    """

    allocation: Literal["global", "uniform"] = "global"

    knobs: ClassVar[tuple[Knob, ...]] = ()  # its sparsity is that of filters

    def choose(self, sparsity: float) -> list[Tensor]:
        return choose_filters(self.dense, self.allocation, sparsity)


def choose_filters(weights: list[Tensor], ranking: Literal["global", "uniform"], sparsity: float) -> list[Tensor]:
    """Flat boolean masks of `weights` that keep the filters of largest l2 norm; the share `sparsity` of filters goes.

    "global": exactly `kept_of` of all filters; "uniform": of each layer's own.
    """
    norms = [w.flatten(1).norm(dim=1) for w in weights]
    if ranking == "global":
        kept = top_over_all(norms, kept_of(sum(n.numel() for n in norms), sparsity))
    else:
        kept = [top_mask(n, kept_of(n.numel(), sparsity)) for n in norms]
    return [k.repeat_interleave(w[0].numel()) for k, w in zip(kept, weights, strict=True)]
