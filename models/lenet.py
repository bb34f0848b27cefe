"""LeNet-300-100: the fully connected network of LeCun et al. (1998), two hidden layers of 300 and 100 units."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Literal

from torch import nn


def lenet_300_100(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    hidden: tuple[int, ...] = (300, 100),
    batch_norm: Literal["none", "hidden", "all"] = "none",
    bias: bool = True,
) -> nn.Module:
    """Images (N, *in_shape) -> logits (N, num_classes), through layers fc1, fc2, ... of `hidden` units with ReLU.

    `batch_norm` puts a batch norm between a layer and its activation: nowhere, on the `hidden` layers, or on `all` of
    them, logits included. `bias` is that of the linear layers. Weights and biases start uniform in
    +-1/sqrt(fan_in), PyTorch's default. 784 inputs and 10 classes make 266,200 weights and 410 biases.

    ValueError for an unknown `batch_norm`, or a hidden layer without units.
    """
    if batch_norm not in ("none", "hidden", "all"):
        raise ValueError(f"batch_norm is 'none', 'hidden' or 'all', not {batch_norm!r}")
    if any(width < 1 for width in hidden):
        raise ValueError(f"every hidden layer needs at least one unit, but hidden is {list(hidden)}")
    widths = [math.prod(in_shape), *hidden, num_classes]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        last = i == len(widths) - 1
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out, bias=bias)
        if batch_norm == "all" or (batch_norm == "hidden" and not last):
            layers[f"norm{i}"] = nn.BatchNorm1d(fan_out)
        if not last:
            layers[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(layers)
