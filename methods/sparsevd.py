"""SparseVD: sparsity from variational dropout (Molchanov et al. 2017), as run on ImageNet by Gale et al. 2019."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from methods.base import Context, Method
from methods.knob import Knob
from methods.passes import Passes
from methods.schedules import Epochs
from methods.variational import Variational, divergence, randomise, settle


@dataclass(kw_only=True)
class SparseVD(Method):
    """Train a noise variance for every weight; where noise drowns the weight, it was not needed.

    Molchanov et al. 2017: w ~ N(theta, sigma^2), alpha = sigma^2 / theta^2, with a log-uniform prior, whose divergence
    grows as alpha falls (equation 14, `methods.variational.divergence`). The loss is the task's, at one draw of the
    noise, plus the divergences of all weights times `kl_weight`, linearly from 0 at `start_epoch` to all of it at
    `end_epoch` (Gale et al. 2019). The variational bound's own weight is 1 / (training samples), since the task's loss
    is a mean. Inference prunes weights of log alpha >= `log_alpha_threshold` and takes theta for the others.

    Nothing is pruned while it trains: there are no masks; `effective` has the pruned weights. Weight decay acts on
    theta alone. `initial_variance` is sigma^2 before training; log alpha is held within +- `log_alpha_clip` in training
    (both codes). Every rank draws noise of its own.
    """

    kl_weight: Annotated[float, "0 <= x"]
    start_epoch: Epochs = 0.0
    end_epoch: Epochs = 0.0
    log_alpha_threshold: Annotated[float, "0 <= x"] = 3.0
    log_alpha_clip: Annotated[float, "0 < x"] = 8.0
    initial_variance: Annotated[float, "0 < x"] = 4.5399929762484854e-05

    # Gale et al. 2019 tried 7.8e-9 to 7.8e-5 for ResNet-50 on ImageNet; their 80 and 90 % models have 3.9e-8, 7.8e-8.
    knobs: ClassVar[tuple[Knob, ...]] = (Knob(option="kl_weight", low=1e-12, high=1.0, guess=5e-8),)

    def check(self, epochs: float) -> None:
        if not self.start_epoch <= self.end_epoch <= epochs:
            raise ValueError(
                f"the ramp of kl_weight from epoch {self.start_epoch:g} to epoch {self.end_epoch:g} does not lie "
                f"within the run's {epochs:g} epochs, or ends before it starts"
            )

    def setup(self, model: nn.Module) -> nn.Module:
        model = super().setup(model)
        if not self.weights:
            raise ValueError("the model has no convolution or linear layer left to prune; check keep_dense")
        self.layers: dict[str, Variational] = {}
        for name in self.weights:
            path = name.removesuffix(".weight")
            start = math.log(self.initial_variance)
            layer = model.get_submodule(path)
            self.layers[name] = randomise(layer, path, start, self.log_alpha_threshold, self.log_alpha_clip)
        return model

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        variances = [layer.log_sigma2 for layer in self.layers.values()]
        own = set(variances)
        others = [p for p in model.parameters() if p.requires_grad and p not in own]
        return [{"params": others}, {"params": variances, "weight_decay": 0.0}]

    def ramped(self, ctx: Context) -> float:
        """The weight of the divergence in this step."""
        epoch, length = ctx.step / ctx.steps_per_epoch, self.end_epoch - self.start_epoch
        if epoch >= self.end_epoch:
            return self.kl_weight
        return self.kl_weight * max(0.0, (epoch - self.start_epoch) / length)

    def penalty(self, ctx: Context) -> Tensor | None:
        weight = self.ramped(ctx)
        if not weight:
            return None
        return weight * torch.stack([divergence(layer.clipped()).sum() for layer in self.layers.values()]).sum()

    def replicated(self) -> dict[str, Any]:
        return {"log_sigma2": {name: layer.log_sigma2 for name, layer in self.layers.items()}}

    @torch.no_grad()
    def effective(self) -> dict[str, Tensor]:
        return {name: layer.sparse() for name, layer in self.layers.items()}

    @contextmanager
    def unpruned(self) -> Iterator[None]:
        """With theta as it is: the dense model that Peste et al. 2021 compare with (table 14)."""
        for layer in self.layers.values():
            layer.threshold = math.inf
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.threshold = self.log_alpha_threshold

    def passes(self, layers: Mapping[str, Mapping[str, Any]]) -> Passes:
        return Passes(factor=2.0)  # a mean and a variance of every weight

    def finalize(self, model: nn.Module, compact: bool = False, example: Tensor | None = None) -> nn.Module:
        for layer in self.layers.values():
            if hasattr(layer, "log_sigma2"):  # not settled yet
                settle(layer)
        return super().finalize(model, compact, example)
