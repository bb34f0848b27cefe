"""ImageNet ResNet-50 (He et al. 2016a), built from torchvision's blocks so that its checkpoints load."""

from __future__ import annotations

from typing import Literal

from torch import nn


def resnet50(
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    stride_at: Literal["3x3", "1x1"] = "3x3",
    zero_init_residual: bool = False,
) -> nn.Module:
    """ResNet-50: images (N, C, H, W) -> logits (N, num_classes), with torchvision's module and parameter names.

    `stride_at`: the convolution of a bottleneck that halves the resolution, its 3x3 ("v1.5": torchvision, 4.09 GMACs at
    224x224) or its first 1x1 ("v1": He et al., 3.86 GMACs). The parameters are the same 25,557,032 at 1000 classes.
    `zero_init_residual` starts the last batch norm of every block at 0 (Goyal et al. 2017). Convolutions start
    He-normal with fan-out, the rest as PyTorch's default. Layers that methods like to keep dense: "conv1" (the stem),
    "layer?.0.downsample.0" (the 1x1 shortcuts), "fc".

    Other than 3 input channels give a stem of that many, with the same initialisation.
    ValueError for an unknown `stride_at`.
    """
    from torchvision.models.resnet import Bottleneck, ResNet

    if stride_at not in ("3x3", "1x1"):
        raise ValueError(f"stride_at is '3x3' or '1x1', not {stride_at!r}")
    model = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=num_classes, zero_init_residual=zero_init_residual)
    if in_shape[0] != 3:
        model.conv1 = nn.Conv2d(in_shape[0], 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stride_at == "1x1":
        for group in (model.layer2, model.layer3, model.layer4):
            group[0].conv1.stride, group[0].conv2.stride = group[0].conv2.stride, group[0].conv1.stride
    return model
