"""Conv-6: a small VGG without batch norm (Frankle & Carbin 2019; Chijiwa et al. 2021, table 1)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

from torch import nn

from models.initial import Initial, initialise, require

GROUPS = (64, 128, 256)  # channels of the two convolutions before each pooling
HIDDEN = (256, 256)


def conv6(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    width: Annotated[float, "0 < x"] = 1.0,
    init: Initial = "kaiming_uniform",
) -> nn.Module:
    """Images (N, C, H, W) of at least 8x8 -> logits (N, num_classes).

    Three groups of two 3x3 convolutions with biases and ReLU, each with a 2x2 max pooling at its end, then two hidden
    layers with ReLU and the classifier: conv1 ... conv6, fc1, fc2, fc. `width` multiplies all channels and hidden units
    (rounded down, the official code's way). `init`: see `models.initial`; what it does not draw starts as PyTorch has
    it. ValueError for smaller images, a width that leaves no channel, or another `init`.
    """
    require(init)
    channels, height, side = in_shape
    if min(height, side) < 8:
        raise ValueError(f"Conv6 halves the image three times: it takes 8x8 or more, not {height}x{side}")
    if int(min(*GROUPS, *HIDDEN) * width) < 1:
        raise ValueError(f"a width of {width:g} leaves no channel of {min(*GROUPS, *HIDDEN)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for group, fan_out in enumerate((int(w * width) for w in GROUPS), start=1):
        for _ in range(2):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(channels, fan_out, 3, padding=1)
            layers[f"relu{number}"] = nn.ReLU()
            channels = fan_out
        layers[f"pool{group}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    fan_in = channels * (height // 8) * (side // 8)
    for index, units in enumerate((int(w * width) for w in HIDDEN), start=1):
        layers[f"fc{index}"] = nn.Linear(fan_in, units)
        layers[f"relu{number + index}"] = nn.ReLU()
        fan_in = units
    layers["fc"] = nn.Linear(fan_in, num_classes)
    model = nn.Sequential(layers)
    initialise(model, init)
    return model
