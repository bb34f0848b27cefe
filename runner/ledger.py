"""The ledger: what a run costs in FLOPs, epoch by epoch, from per-layer counts and each method's own rule."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from methods.base import Method
from methods.passes import DENSE, Passes
from models.account import Account, account

log = logging.getLogger("regrow")
Line = Mapping[str, Any]

#: How the metrics flops/* count, by its name in models.account: AC/DC's way, appendix C.2.
CONVENTION = "acdc"
#: In which other ways inference is counted: DPF's figures have their own.
OTHERS = ("dpf",)


class Ledger:
    """Counts the FLOPs of a run whose model has the account `dense`; None, of a model that none can be made of.

    The counts are those at the end of an epoch and stand for the whole epoch, as Peste et al. 2021 do (C.2).
    flops/inference: of one pass of one input, of the non-zero weights; flops.NAME/inference: in another convention.
    flops/inference_ratio: to the dense network. flops/training: of all samples of all epochs until now, by the method's
    own rule (`Method.passes`); flops/training_ratio: to a dense training of the same samples, 3 F each.
    """

    def __init__(self, dense: Account | None, parameters: Iterable[str] = ()) -> None:
        self.dense = dense
        self.multiplied = set() if dense is None else {layer.name for layer in dense.layers}
        self.silent = set(parameters)  # that are no layer's: embeddings, which are looked up and cost nothing

    @classmethod
    def of(cls, model: nn.Module, in_shape: Sequence[int]) -> Ledger:
        """The ledger of a model as it is built, before a method changes it. Nothing is computed, no number drawn."""
        try:
            return cls(account(_shadow(model), in_shape), (name for name, _ in model.named_parameters()))
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.warning("no FLOPs are recorded: %s cannot be counted (%s)", type(model).__name__, reason)
            return cls(None)

    def line(self, method: Method, layers: Mapping[str, Line], samples: int, history: Sequence[Line]) -> dict[str, Any]:
        """What joins an epoch's line of metrics. `layers`: counts per prunable weight; `samples`: of this epoch.

        `history`: the lines of the epochs before. Where one of them lacks its FLOPs, since an older version wrote it,
        there is no sum.
        """
        if self.dense is None:
            return {}
        nonzero = self._of_layers({name: layer["nonzero"] for name, layer in layers.items()})
        whole = self.dense.flops(CONVENTION)
        line = {"flops/inference": float(self.dense.flops(CONVENTION, nonzero))}
        line["flops/inference_ratio"] = line["flops/inference"] / whole
        line |= {f"flops.{other}/inference": float(self.dense.flops(other, nonzero)) for other in OTHERS}
        before = history[-1] if history else {"flops/training": 0.0}
        if "flops/training" in before:
            cost = samples * self.training(method.passes(layers))
            line["flops/training"] = before["flops/training"] + cost
            dense = (len(history) + 1) * samples * self.training(DENSE)  # all epochs have the same number of samples
            line["flops/training_ratio"] = line["flops/training"] / dense
        return line

    def training(self, passes: Passes) -> float:
        """FLOPs of training on one sample."""
        assert self.dense is not None
        products = (passes.forward, passes.error, passes.gradient)
        return passes.factor * sum(float(self.dense.flops(CONVENTION, self._of_layers(counts))) for counts in products)

    def affordable(self, method: Method, layers: Mapping[str, Line]) -> float:
        """How many samples the method as it stands can train on for the FLOPs of one sample of dense training."""
        if self.dense is None:
            raise ValueError("the model's FLOPs cannot be counted, so there is no budget of FLOPs")
        return self.training(DENSE) / self.training(method.passes(layers))

    def _of_layers(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Of the weights that multiply; of one that the model as it was built does not name, it is said once."""
        for name in counts.keys() - self.multiplied - self.silent:
            log.warning("FLOPs: %s is no weight of the model as it was built; what uses it is counted as dense", name)
            self.silent.add(name)
        return {name: number for name, number in counts.items() if name in self.multiplied}


def _shadow(model: nn.Module) -> nn.Module:
    """A copy of the model without data: it computes shapes only."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)
