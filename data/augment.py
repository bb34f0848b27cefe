"""Augmentation of uint8 image batches in a few tensor operations on their own device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PadMode = Literal["reflect", "zero"]
Crop = Literal["padded", "resized"]

TRIES = 10  # of torchvision's RandomResizedCrop, before it takes the middle


def augmentation(
    pad: int, mode: PadMode, flip: bool, crop: Crop = "padded"
) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    """`crop_flip`, or None where that would change nothing; with `crop` "resized", `resized_crop_flip`.

    ValueError for a resized crop of reflected borders.
    """
    if crop == "resized":
        if pad and mode != "zero":
            raise ValueError("crop = resized pads with black: set pad_mode = zero")
        return resized_crop_flip(pad, flip)
    return crop_flip(pad, mode, flip) if pad or flip else None


def crop_flip(pad: int, mode: PadMode = "reflect", flip: bool = True) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Pad every side by `pad` pixels, crop at random to the old size, mirror every second image (at random).

    The result takes a uint8 batch of shape (n, channels, height, width) and a generator on the batch's device, and
    gives a batch of that shape. `reflect` repeats the image mirrored at its border pixels (the border itself once);
    `zero` pads with black. Offsets are drawn for all images, rows before columns, then the flips.
    Raises ValueError when a reflected border is wider than the image allows.
    """

    crops: dict[tuple[int, int, torch.device], Tensor] = {}

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        n, channels, height, width = images.shape
        if mode == "reflect" and pad >= min(height, width):
            raise ValueError(f"pad = {pad} is too wide to reflect images of {height}x{width}")
        device = images.device
        offsets = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator, device=device).view(2, n) + pad
        which = offsets[0] * (2 * pad + 1) + offsets[1]
        if flip:
            mirrored = torch.rand(n, 1, generator=generator, device=device).view(n) < 0.5
            which += mirrored * (2 * pad + 1) ** 2
        place = height, width, device
        if place not in crops:
            crops[place] = _crops(height, width, pad, mode).to(device)
        source = crops[place].index_select(0, which)[:, None].expand(n, channels, height * width)
        pixels = images.reshape(n, channels, height * width)
        if mode == "zero":
            pixels = F.pad(pixels, (0, 1))
        return pixels.gather(2, source).view(n, channels, height, width)

    return augment


def _crops(height: int, width: int, pad: int, mode: PadMode) -> Tensor:
    """Where the pixels of every crop come from, as they are and then mirrored: int64 of shape
    (2 * (2 * pad + 1)^2, height * width), row offsets outermost. A black pixel comes from behind the last one.
    """
    offsets = torch.arange(-pad, pad + 1)[:, None]
    rows, columns = torch.arange(height) + offsets, torch.arange(width) + offsets
    columns = torch.stack([columns, torch.arange(width).flip(0) + offsets])
    source = _reflected(rows, height)[None, :, None, :, None] * width + _reflected(columns, width)[:, None, :, None, :]
    if mode == "zero":
        beyond = [(at < 0) | (at >= size) for at, size in ((rows, height), (columns, width))]
        outside = beyond[0][None, :, None, :, None] | beyond[1][:, None, :, None, :]
        source = source.masked_fill(outside, height * width)
    return source.reshape(-1, height * width)


def _reflected(at: Tensor, size: int) -> Tensor:
    """Coordinates up to size - 1 beyond either border, mirrored back into [0, size); others are clamped."""
    last = size - 1
    return (last - (last - at.abs()).abs()).clamp_(0, last)


def resized_crop_flip(pad: int, flip: bool = True) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Pad every side by `pad` black pixels, crop a rectangle at random, scale it to the old size, mirror half of them.

    As torchvision's Pad, RandomResizedCrop (8 to 100 % of the area, width / height from 3/4 to 4/3, bilinear with
    antialiasing) and RandomHorizontalFlip do, in one go for a uint8 batch of shape (n, channels, height, width).
    """

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        size = height + 2 * pad, width + 2 * pad
        top, left, tall, wide = rectangles(n, *size, generator)
        # The border need not be there: what lies on it is black whatever its weight.
        rows = resampling(top, tall, size[0], height)[:, :, pad : pad + height]
        columns = resampling(left, wide, size[1], width)[:, :, pad : pad + width]
        if flip:
            mirrored = torch.rand(n, 1, 1, generator=generator, device=images.device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        scaled = rows[:, None] @ images.float() @ columns[:, None].transpose(2, 3)
        return scaled.round_().clamp_(0, 255).to(torch.uint8)

    return augment


def rectangles(n: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width of `n` random rectangles within an image, int64 of shape (n,).

    The first of `TRIES` draws that fits the image, else the largest one in the middle: torchvision's RandomResizedCrop.
    """
    device = generator.device
    area = height * width * torch.empty(TRIES, n, device=device).uniform_(0.08, 1.0, generator=generator)
    aspect = torch.empty(TRIES, n, device=device).uniform_(math.log(3 / 4), math.log(4 / 3), generator=generator).exp_()
    wide, tall = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.int().argmax(0, keepdim=True)
    middle = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    some = fits.any(0)
    wide = torch.where(some, wide.gather(0, first)[0], middle[0])
    tall = torch.where(some, tall.gather(0, first)[0], middle[1])
    places = torch.rand(2, n, generator=generator, device=device)
    top = torch.where(some, (places[0] * (height - tall + 1)).long(), (height - tall) // 2)
    left = torch.where(some, (places[1] * (width - wide + 1)).long(), (width - wide) // 2)
    return top, left, tall, wide


def resampling(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """The weights, of shape (n, out, size), that scale [start, start + length) of a line of `size` pixels to `out`.

    Bilinear, and antialiased where it shrinks: a triangle as wide as the distance of the new pixels, cut at the ends.
    """
    scale = (length.float() / out)[:, None, None]
    centre = (torch.arange(out, device=start.device)[None, :, None] + 0.5) * scale  # from the start
    place = torch.arange(size, device=start.device)[None, None, :] - start[:, None, None]
    weight = (1 - ((place + 0.5 - centre) / scale.clamp(min=1)).abs()).clamp_(min=0)
    weight = weight.masked_fill_((place < 0) | (place >= length[:, None, None]), 0)
    return weight / weight.sum(2, keepdim=True)
