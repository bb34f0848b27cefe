"""Random images and labels of any shape, for benchmarks and tests."""

from __future__ import annotations

from typing import Annotated

import torch

from data.images import Images

Count = Annotated[int, "1 <= x"]


def synthetic(
    *,
    root: str,
    shape: list[int],
    num_classes: Count,
    train_size: Count,
    test_size: Count,
    data_seed: int = 0,
    train_subset: Annotated[int, "1 <= x"] | None = None,
) -> Images:
    """Uniform noise; labels depend on nothing. A fixed function of its arguments."""
    rng = torch.Generator().manual_seed(data_seed)

    def part(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=rng)
        return images, torch.randint(num_classes, (size,), generator=rng)

    return Images(
        part(train_size),
        part(test_size),
        num_classes=num_classes,
        mean=[0.5] * shape[0],
        std=[0.29] * shape[0],
        train_subset=train_subset,
    )
