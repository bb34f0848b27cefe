"""Resized crops against torchvision's; samples that are held out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy.stats import kstest
from torchvision.transforms.v2 import RandomResizedCrop

from data.augment import augmentation, rectangles, resampling, resized_crop_flip
from data.images import Images


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_resized_crop_is_torchvisions() -> None:
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=generator(0))
    found = resized_crop_flip(4, flip=False)(images, generator(1))
    top, left, tall, wide = (x.tolist() for x in rectangles(40, 40, 40, generator(1)))
    assert len(set(tall)) > 10 and len(set(wide)) > 10
    for i, image in enumerate(images):
        padded = tv.pad(image, [4, 4, 4, 4]).float()
        expected = tv.resized_crop(padded, top[i], left[i], tall[i], wide[i], [32, 32], antialias=True)
        assert float((found[i].float() - expected).abs().max()) <= 0.51, i  # rounded to whole grey levels


def test_half_of_the_crops_are_mirrored() -> None:
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator(0))
    plain, flipped = (resized_crop_flip(4, flip=flip)(images, generator(1)) for flip in (False, True))
    same = [bool(torch.equal(a, b)) for a, b in zip(plain, flipped, strict=True)]
    mirrored = [bool(torch.equal(a.flip(2), b)) for a, b in zip(plain, flipped, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True)) and 16 < sum(mirrored) < 48


def test_the_rectangles_are_drawn_as_torchvision_draws_them() -> None:
    top, left, tall, wide = rectangles(4000, 40, 40, generator(0))
    assert bool(((top >= 0) & (top + tall <= 40) & (left >= 0) & (left + wide <= 40)).all())
    torch.manual_seed(0)
    theirs = RandomResizedCrop(32)
    drawn: list[Any] = [theirs.make_params([torch.zeros(3, 40, 40)]) for _ in range(2000)]
    area = [each["height"] * each["width"] for each in drawn]
    assert kstest((tall * wide).tolist(), area).pvalue > 0.01
    assert kstest(top.tolist(), [each["top"] for each in drawn]).pvalue > 0.01


def test_where_no_rectangle_fits_the_middle_is_taken() -> None:
    top, left, tall, wide = rectangles(200, 4, 400, generator(0))  # most shapes are higher than the image
    middle = (tall == 4) & (wide == 5) & (left == 197)
    assert bool(middle.any()) and bool((tall <= 4).all()) and bool((top + tall <= 4).all())


def test_weights_of_a_resampling_by_hand() -> None:
    halved = resampling(torch.tensor([0]), torch.tensor([4]), 4, 2)[0]  # a triangle of half-width 2 around 1 and 3
    assert torch.allclose(halved, torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7)
    same = resampling(torch.tensor([1]), torch.tensor([3]), 5, 3)[0]
    assert torch.equal(same, torch.eye(5)[1:4])


def test_options_of_an_augmentation() -> None:
    with pytest.raises(ValueError, match="crop = resized pads with black: set pad_mode = zero"):
        augmentation(4, "reflect", True, "resized")
    assert augmentation(0, "reflect", False) is None
    assert augmentation(0, "reflect", False, "resized") is not None


# Held-out samples


def images(count: int, **options: Any) -> Images:
    train = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(count) % 2
    return Images(train, train, num_classes=2, mean=[0.0], std=[1 / 255], **options)


def test_held_out_samples_are_a_fixed_draw_and_do_not_train() -> None:
    data = images(50, validation=10)
    assert (data.train_size, len(data.validation[1]), len(data.test[1])) == (40, 10, 50)
    held = torch.cat([x for x, _ in data.probe_batches("validation/", 3)]).flatten().int().tolist()
    draw = torch.randperm(50, generator=generator(777))
    assert held == sorted(draw[:10].tolist()) and held != list(range(10))
    trained, labels = data.batch(torch.arange(40), 0)
    assert sorted(held + trained.flatten().int().tolist()) == list(range(50))
    assert labels.tolist() == (trained.flatten() % 2).tolist()
    whole = list(data.probe_batches("validation/", 3))
    assert [len(y) for _, y in whole] == [3, 3, 3, 1]
    assert torch.equal(next(iter(data.probe_batches("validation/", 3, 1, 2)))[0], whole[1][0])


def test_a_subset_is_of_the_rest_and_leaves_what_is_held_out() -> None:
    whole, part = images(50, validation=10), images(50, validation=10, train_subset=20)
    assert part.train_size == 20 and torch.equal(whole.validation[0], part.validation[0])
    assert not set(part.train[0].flatten().tolist()) & set(part.validation[0].flatten().tolist())
    assert whole.probes == ("validation/",) and images(50).probes == ()


def test_labels_are_corrupted_among_those_that_train() -> None:
    data = images(50, validation=10, corrupted_labels=40)
    assert data.probes == ("validation/", "train/corrupted_true_", "train/corrupted_false_")
    assert torch.equal(data.validation[1], data.validation[0].flatten().long() % 2)
    assert torch.equal(data.true, data.train[0].flatten().long() % 2) and not torch.equal(data.true, data.train[1])


def test_nothing_left_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="validation = 50 leaves nothing of 50 samples to train on"):
        images(50, validation=50)
