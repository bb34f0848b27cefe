"""MobileNetV1 (Howard et al. 2017): depthwise 3x3 and pointwise 1x1 convolutions in turn."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from torch import Tensor, nn

from models.initial import draw

# Table 1 of the paper: channels of each block's output, and the stride of its depthwise convolution.
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
STEM = 32
LEAST = 8  # channels that a narrow network keeps


def mobilenet_v1(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    width: Annotated[float, "0 < x"] = 1.0,
    classifier: Literal["linear", "convolution"] = "linear",
) -> nn.Module:
    """MobileNetV1: images (N, C, H, W) -> logits (N, num_classes); sides of at least 32 pixels keep all five strides.

    At 3x224x224 and 1000 classes it has 4,231,976 parameters and 568,740,352 MACs. `width` multiplies all channels
    (rounded down, never below 8). Batch norm and ReLU follow every convolution; no convolution has a bias. All layers
    start as PyTorch's default. `classifier` "convolution" is one without biases that starts He-normal with fan-in: the
    1x1 convolution of STR's and LATS's official code, whose other layers start as here.

    The modules are named as in STR's and AC/DC's public code, so that tables and checkpoints speak of the same layers:
    "model.0.0" is the stem, "model.N.0" the depthwise convolution of block N = 1..13, "model.N.3" its pointwise one,
    "fc" the classifier. To keep the stem and the depthwise convolutions dense: keep_dense=["model.*.0"].

    ValueError for an unknown `classifier`.
    """
    if classifier not in ("linear", "convolution"):
        raise ValueError(f"classifier is 'linear' or 'convolution', not {classifier!r}")
    model = MobileNetV1(num_classes, in_shape[0], width)
    if classifier == "convolution":
        model.fc = nn.Linear(model.fc.in_features, num_classes, bias=False)
        draw(model.fc.weight, "kaiming_normal_in")
    return model


class MobileNetV1(nn.Module):
    """The network that `mobilenet_v1` describes."""

    def __init__(self, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(math.floor(channels * width), LEAST)

        layers = [nn.Sequential(*_normed(nn.Conv2d(in_channels, scaled(STEM), 3, 2, 1, bias=False)))]
        inner = scaled(STEM)
        for channels, stride in BLOCKS:
            outer = scaled(channels)
            depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
            layers.append(nn.Sequential(*_normed(depthwise), *_normed(nn.Conv2d(inner, outer, 1, bias=False))))
            inner = outer
        # At 224x224 this is their average pooling over 7x7.
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(inner, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.model(images).flatten(1))


def _normed(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]
