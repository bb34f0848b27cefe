"""The account of an architecture: parameters, multiply-accumulates and FLOPs per layer, dense or at given densities.

Torch-free, but for `account`, which looks at a model. `python -m models.account NAME` prints one and writes its record.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from models.names import nearest

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1


@dataclass(frozen=True)
class Convention:
    """What one inference pass over one input is charged for: operations per occurrence."""

    mac: int  # per multiply-accumulate of a kept weight of a convolution or linear layer
    bias: int = 0  # per addition of a bias
    batch_norm: int = 0  # per element that goes through a batch norm
    relu: int = 0  # per element that goes through a ReLU
    pooling: int = 0  # per element read by the windows of 2d max and average pooling (not adaptive pooling)
    output: int = 0  # per element that a convolution or linear layer puts out
    about: str = ""


CONVENTIONS = {
    "macs": Convention(mac=1, about="multiply-accumulates of convolutions and linear layers"),
    "2xmac": Convention(mac=2, about="multiplications and additions of convolutions and linear layers"),
    # Reproduces the 216, 848 and 3366 M MACs of WRN-28-2, -4 and -8 (DPF, figures 3 and 6).
    "dpf": Convention(mac=1, batch_norm=2, relu=1, about="DPF: MACs, 2 per batch-norm and 1 per ReLU element"),
    # RigL's official counter: a dot product of n weights is n multiplications and n - 1 additions, its bias 1 addition,
    # its ReLU (one after every layer, as it counts) 1 multiplication. All ratios of training in AC/DC's tables 1, 2 and
    # 11 that RigL's and Top-KAST's papers give come out of it to the printed digit, but one.
    "rigl": Convention(mac=2, output=1, about="RigL's official counter: 2 per MAC, 1 per output element"),
    # AC/DC, appendix C.2: non-zero weights of convolutions and linear layers; on ImageNet batch norm, pooling and ReLU
    # are ignored. The official counter doubles the MACs and adds the biases.
    "acdc": Convention(mac=2, bias=1, about="AC/DC (C.2): 2 per MAC, 1 per bias"),
    # The same official counter with nothing ignored, which C.2's words leave for CIFAR. It sees ReLU modules only, and
    # AC/DC's WRN has none; here every ReLU counts, 0.02 % of that network.
    "acdc_all": Convention(
        mac=2,
        bias=1,
        batch_norm=2,
        relu=1,
        pooling=1,
        about="AC/DC's official counter, nothing ignored: also batch norm (2), ReLU (1), pooling windows (1)",
    ),
}
Of = Literal["pruned", "weights", "weights+norm", "parameters"]


@dataclass(frozen=True)
class Layer:
    """A weight that takes part in convolutions or matrix products, and what one forward pass of one input costs."""

    name: str  # of the weight, as masks are named: "fc1.weight"
    kind: Literal["conv", "linear"]
    shape: tuple[int, ...]  # of the weight
    groups: int  # of the convolution, else 1
    weights: int
    biases: int
    macs: int
    bias_adds: int  # additions of a bias
    output: tuple[int, ...]  # without the batch; () when the layer took no part

    @property
    def params(self) -> int:
        """Weights and biases."""
        return self.weights + self.biases


@dataclass(frozen=True)
class Account:
    """All layers of a model at one input shape, and what its other operations cost."""

    in_shape: tuple[int, ...]  # without the batch
    layers: tuple[Layer, ...]
    parameters: int  # everything trained: weights, biases, norms, embeddings
    batch_norm_parameters: int
    batch_norm_elements: int  # that go through a batch norm
    relu_elements: int  # that go through a ReLU
    pooling_operations: int  # elements read by pooling windows
    activation_macs: int  # products of two activations (attention): no weight to prune, part of no convention

    @property
    def weights(self) -> int:
        """Weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def biases(self) -> int:
        """Biases of all layers, those of norms left out."""
        return sum(layer.biases for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers, dense."""
        return sum(layer.macs for layer in self.layers)

    def kept(self, densities: Mapping[str, float]) -> dict[str, float]:
        """Kept weights per listed layer at the given densities; fractions where a density hits no whole number."""
        for name, density in densities.items():
            if not 0 <= density <= 1:
                raise ValueError(f"the density of {name} is {density}; it must lie between 0 and 1")
        return {name: densities[name] * layer.weights for name, layer in self._listed(densities).items()}

    def layer_macs(self, kept: Mapping[str, float] | None = None) -> dict[str, float]:
        """Multiply-accumulates per layer with `kept` weights (name -> count); a layer that is not listed is dense.

        A weight of a layer takes part as often as any other, so a layer's share is kept / weights. Whole counts give
        whole numbers. ValueError for an unknown name, or a count that is negative or above the layer's weights.
        """
        kept = kept or {}
        for name, layer in self._listed(kept).items():
            if not 0 <= kept[name] <= layer.weights:
                raise ValueError(f"{name} has {layer.weights} weights; it cannot keep {kept[name]}")
        return {
            layer.name: _share(layer.macs, kept.get(layer.name, layer.weights), layer.weights) for layer in self.layers
        }

    def flops(self, convention: str = "macs", kept: Mapping[str, float] | None = None) -> float:
        """Operations of one inference pass of one input as a named convention counts them, at `kept` weights per layer.

        For densities pass `kept=account.kept(densities)`. ValueError for an unknown convention, and as `layer_macs`.
        """
        if convention not in CONVENTIONS:
            raise ValueError(f"there is no FLOPs convention {convention!r} {nearest(convention, CONVENTIONS)}")
        per = CONVENTIONS[convention]
        return (
            per.mac * sum(self.layer_macs(kept).values())
            + per.bias * sum(layer.bias_adds for layer in self.layers)
            + per.batch_norm * self.batch_norm_elements
            + per.relu * self.relu_elements
            + per.pooling * self.pooling_operations
            + per.output * sum(math.prod(layer.output) for layer in self.layers if layer.macs)
        )

    def sparsity(self, kept: Mapping[str, float], of: Of = "weights") -> float:
        """The share of zeros when the listed layers keep `kept` weights, of a stated whole:

        "pruned", the listed layers alone; "weights", those of all layers; "weights+norm", these and the batch norms'
        parameters (AC/DC's columns: everything but biases); "parameters", all of the model.
        """
        listed = self._listed(kept)
        wholes = {
            "pruned": sum(layer.weights for layer in listed.values()),
            "weights": self.weights,
            "weights+norm": self.weights + self.batch_norm_parameters,
            "parameters": self.parameters,
        }
        if of not in wholes:
            raise ValueError(f"sparsity is not measured of {of!r} {nearest(of, wholes)}")
        zeros = sum(layer.weights - kept[name] for name, layer in listed.items())
        return zeros / wholes[of] if wholes[of] else 0.0

    def record(self) -> dict[str, Any]:
        """The account as plain JSON data, with its totals; `from_record` reads it back."""
        totals = {"weights": self.weights, "biases": self.biases, "macs": self.macs}
        flops = {convention: self.flops(convention) for convention in CONVENTIONS}
        return {"schema": SCHEMA, **asdict(self), **totals, "flops": flops}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Account:
        """The account that `record` wrote; ValueError for another schema or a truncated record."""
        if record.get("schema") != SCHEMA:
            raise ValueError(f"the account's record has schema {record.get('schema')!r}, not {SCHEMA}; write it again")
        try:
            fields = {name: record[name] for name in cls.__dataclass_fields__}
            layers = [
                Layer(**{**layer, "shape": tuple(layer["shape"]), "output": tuple(layer["output"])})
                for layer in fields["layers"]
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"the account's record is incomplete ({error}); write it again") from error
        return cls(**{**fields, "in_shape": tuple(fields["in_shape"]), "layers": tuple(layers)})

    def _listed(self, names: Mapping[str, Any]) -> dict[str, Layer]:
        layers = {layer.name: layer for layer in self.layers}
        for name in names:
            if name not in layers:
                raise ValueError(f"there is no layer weight {name!r} {nearest(name, layers)}")
        return {name: layers[name] for name in names}


def _share(macs: int, kept: float, weights: int) -> float:
    """macs * kept / weights, a whole number where it is one."""
    if isinstance(kept, int) and macs * kept % weights == 0:
        return macs * kept // weights
    return macs * kept / weights


def account(model: nn.Module, in_shape: Sequence[int]) -> Account:
    """The account of a model for inputs of shape `in_shape`, without the batch: (channels, height, width).

    Runs the model once on zeros, on the device it is on; a model built under `torch.device("meta")` costs no memory.
    """
    from models.counter import count

    return count(model, tuple(in_shape))


if __name__ == "__main__":
    from models.report import main

    sys.exit(main())
