"""The UCI handwritten digits that scikit-learn carries: 1,797 real images, no download."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch

from data.images import Images


def digits(
    *,
    root: str,
    digest: str | None,
    test_every: Annotated[int, "2 <= x"],
    mean: list[float],
    std: list[float],
    train_subset: Annotated[int, "1 <= x"] | None = None,
) -> Images:
    """Images of shape (1, 8, 8), pixel values 0 to 16, 10 classes. Every `test_every`-th sample is for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    test = torch.arange(len(labels)) % test_every == 0
    return Images(
        (images[~test], labels[~test]),
        (images[test], labels[test]),
        num_classes=10,
        mean=mean,
        std=std,
        peak=16.0,
        train_subset=train_subset,
        digest=digest,
    )
