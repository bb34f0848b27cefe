"""Random images, token sequences and labels of any shape, for benchmarks and tests."""

from __future__ import annotations

from typing import Annotated

import torch

from data.images import Images
from data.padding import WORDS
from data.sequences import Sequences, Texts

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


def synthetic_texts(
    *,
    root: str,
    words: Count,
    length: Count,
    num_classes: Count,
    train_size: Count,
    test_size: Count,
    data_seed: int = 0,
    train_subset: Annotated[int, "1 <= x"] | None = None,
) -> Texts:
    """1 to `length` of `words` random words each; labels depend on nothing. A fixed function of its arguments."""
    rng = torch.Generator().manual_seed(data_seed)

    def part(size: int) -> Sequences:
        ends = torch.randint(1, length + 1, (size,), generator=rng).cumsum(0)
        ids = torch.randint(WORDS, WORDS + words, (int(ends[-1]) if size else 0,), generator=rng, dtype=torch.int32)
        return Sequences(ids, ends, torch.randint(num_classes, (size,), generator=rng))

    return Texts(
        part(train_size),
        part(0),
        part(test_size),
        num_classes=num_classes,
        words=WORDS + words,
        max_length=length,
        train_subset=train_subset,
    )
