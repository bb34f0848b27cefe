"""VGG networks (Simonyan & Zisserman 2015) for small images: 11, 13, 16 or 19 layers, a narrow classifier."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

from torch import Tensor, nn

# 3x3 convolutions in each of the five groups: configurations A, B, D and E of the paper's Table 1.
GROUPS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
SMALLEST = 2 ** len(WIDTHS)  # pixels: every group ends with a pooling that halves the resolution


class VGG(nn.Module):
    """features (convolutions and pooling) -> flatten -> hidden (fully connected layers) -> fc."""

    def __init__(
        self,
        groups: tuple[int, ...],
        in_shape: tuple[int, int, int],
        num_classes: int,
        hidden: tuple[int, ...],
        dropout: float,
        hidden_norm: bool,
        batch_norm: bool,
        last_pool: Literal["max", "avg"],
    ) -> None:
        super().__init__()
        channels, height, width = in_shape
        features: OrderedDict[str, nn.Module] = OrderedDict()
        number = 0
        for group, (convolutions, fan_out) in enumerate(zip(groups, WIDTHS, strict=True), start=1):
            for _ in range(convolutions):
                number += 1
                features[f"conv{number}"] = nn.Conv2d(channels, fan_out, 3, padding=1)
                if batch_norm:
                    features[f"norm{number}"] = nn.BatchNorm2d(fan_out)
                features[f"relu{number}"] = nn.ReLU()
                channels = fan_out
            average = last_pool == "avg" and group == len(groups)
            features[f"pool{group}"] = nn.AvgPool2d(2) if average else nn.MaxPool2d(2)
        self.features = nn.Sequential(features)
        self.flatten = nn.Flatten()
        fan_in = channels * (height // SMALLEST) * (width // SMALLEST)
        between: OrderedDict[str, nn.Module] = OrderedDict()
        for i, units in enumerate(hidden, start=1):
            if dropout:
                between[f"dropout{i}"] = nn.Dropout(dropout)
            between[f"fc{i}"] = nn.Linear(fan_in, units)
            between[f"relu{i}"] = nn.ReLU()
            if hidden_norm:
                between[f"norm{i}"] = nn.BatchNorm1d(units)
            fan_in = units
        self.hidden = nn.Sequential(between)
        self.fc = nn.Linear(fan_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(self.flatten(self.features(x))))


def vgg(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    depth: Literal[11, 13, 16, 19],
    hidden: tuple[int, ...] = (512, 512),
    dropout: Annotated[float, "0 <= x < 1"] = 0.5,
    hidden_norm: bool = False,
    batch_norm: bool = True,
    last_pool: Literal["max", "avg"] = "max",
) -> nn.Module:
    """VGG-depth: images (N, C, H, W) of at least 32x32 -> logits (N, num_classes).

    Five groups of 3x3 convolutions with biases, each followed by a batch norm (unless `batch_norm` is false) and a
    ReLU; each group ends with a 2x2 max pooling, the last one with `last_pool`. Then fully connected layers of `hidden`
    units with ReLU, each behind a dropout (0: none) and, with `hidden_norm`, followed by a batch norm; then the
    classifier.

    The defaults are those of the public code of DPF's first author (https://github.com/epfml/ChocoSGD), "vgg16_bn".
    Sparse momentum's code calls the same network with `dropout: 0.0, hidden_norm: true` VGG16-D. open_lth's VGG-11 has
    `hidden: []` and `last_pool: avg`. Convolutions start He-normal with fan-out, all else as PyTorch's default. Layers:
    "features.conv*", "hidden.fc*", and the classifier "fc".

    ValueError for another depth, images below 32x32, a hidden layer without units, or a value out of range.
    """
    if depth not in GROUPS:
        raise ValueError(f"a VGG has {', '.join(map(str, GROUPS))} layers, not {depth}")
    if min(in_shape[1:]) < SMALLEST:
        raise ValueError(f"a VGG halves the image five times: it takes 32x32 or more, not {in_shape[1]}x{in_shape[2]}")
    if any(units < 1 for units in hidden):
        raise ValueError(f"every hidden layer needs at least one unit, but hidden is {list(hidden)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), not {dropout}")
    if last_pool not in ("max", "avg"):
        raise ValueError(f"last_pool is 'max' or 'avg', not {last_pool!r}")
    return VGG(GROUPS[depth], in_shape, num_classes, tuple(hidden), dropout, hidden_norm, batch_norm, last_pool)
