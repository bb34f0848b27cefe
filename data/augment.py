"""Augmentation of uint8 image batches in a few tensor operations on their own device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

PadMode = Literal["reflect", "zero"]


def augmentation(pad: int, mode: PadMode, flip: bool) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    """`crop_flip`, or None where that would change nothing."""
    return crop_flip(pad, mode, flip) if pad or flip else None


def crop_flip(pad: int, mode: PadMode = "reflect", flip: bool = True) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Pad every side by `pad` pixels, crop at random to the old size, mirror every second image (at random).

    The result takes a uint8 batch of shape (n, channels, height, width) and a generator on the batch's device, and
    gives a batch of that shape. `reflect` repeats the image mirrored at its border pixels (the border itself once);
    `zero` pads with black. Offsets are drawn for all images, rows before columns, then the flips.
    Raises ValueError when a reflected border is wider than the image allows.
    """

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        n, channels, height, width = images.shape
        if mode == "reflect" and pad >= min(height, width):
            raise ValueError(f"pad = {pad} is too wide to reflect images of {height}x{width}")
        device = images.device
        offsets = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator, device=device)
        rows = torch.arange(height, device=device) + offsets[0]
        columns = torch.arange(width, device=device).expand(n, width)
        if flip:
            mirrored = torch.rand(n, 1, generator=generator, device=device) < 0.5
            columns = torch.where(mirrored, width - 1 - columns, columns)
        columns = columns + offsets[1]
        outside = None
        if mode == "zero":
            beyond = [(at < 0) | (at >= size) for at, size in ((rows, height), (columns, width))]
            outside = beyond[0][:, :, None] | beyond[1][:, None, :]
        rows, columns = _reflected(rows, height), _reflected(columns, width)
        source = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, height * width)
        cropped = images.reshape(n, channels, height * width).gather(2, source.expand(n, channels, height * width))
        cropped = cropped.view(n, channels, height, width)
        return cropped if outside is None else cropped.masked_fill_(outside[:, None], 0)

    return augment


def _reflected(at: Tensor, size: int) -> Tensor:
    """Coordinates up to size - 1 beyond either border, mirrored back into [0, size); others are clamped."""
    last = size - 1
    return (last - (last - at.abs()).abs()).clamp_(0, last)
