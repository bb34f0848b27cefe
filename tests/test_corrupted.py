"""Corrupted labels: which, with what label, in subsets, and the metrics that follow them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data.images import Images
from runner.compose import compose
from runner.experiment import make
from runner.identity import key
from runner.records import RunDirectory
from runner.trainer import Trainer

CLASSES = 10


def images(count: int = 200, **given: Any) -> Images:
    """Noise of shape (1, 4, 4), each image its own, and labels in turn."""
    rng = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=rng)
    labels = torch.arange(count) % CLASSES
    part = (pixels, labels)
    return Images(part, (pixels[:30], labels[:30]), num_classes=CLASSES, mean=[0.5], std=[0.25], **given)


def test_as_many_labels_as_asked_for_are_drawn_anew() -> None:
    data = images(20_000, corrupted_labels=5_000)
    true = torch.arange(20_000) % CLASSES
    assert len(data.where) == 5_000 and len(data.where.unique()) == 5_000
    untouched = torch.ones(20_000, dtype=torch.bool)
    untouched[data.where] = False
    assert torch.equal(data.train[1][untouched], true[untouched])
    assert torch.equal(data.true, true[data.where])
    given = data.train[1][data.where]
    for label in range(CLASSES):  # every class alike, whatever the true one: sd of a count is 21, of a share 0.004
        assert abs(int((given == label).sum()) - 500) < 110
    assert abs(float((given == data.true).double().mean()) - 0.1) < 0.022
    assert abs(int((data.where < 10_000).sum()) - 2_500) < 160


def test_the_corruption_has_a_seed_of_its_own() -> None:
    one, same, other = (images(corrupted_labels=50, corruption_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.train[1], same.train[1]) and torch.equal(one.where, same.where)
    assert not torch.equal(one.where, other.where) and not torch.equal(one.train[1], other.train[1])
    runs = [["dataset=cifar10"], ["dataset=cifar10", "dataset.corrupted_labels=9"]]
    runs.append([*runs[1], "dataset.corruption_seed=1"])
    assert len({key(compose(overrides)) for overrides in runs}) == 3


def test_a_subset_has_those_of_its_samples_that_are_corrupted_in_the_whole() -> None:
    whole, part = images(corrupted_labels=60), images(corrupted_labels=60, train_subset=80)
    chosen = images(train_subset=80)
    places = {whole.train[0][i].numpy().tobytes(): i for i in range(200)}
    origin = torch.tensor([places[image.numpy().tobytes()] for image in part.train[0]])
    assert torch.equal(part.train[0], chosen.train[0])  # the same samples as without corruption
    assert torch.equal(part.train[1], whole.train[1][origin])
    assert set(origin[part.where].tolist()) == set(origin.tolist()) & set(whole.where.tolist())
    assert torch.equal(part.true, origin[part.where] % CLASSES)
    assert 10 < len(part.where) < 40


def test_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="corrupted_labels = 201 exceeds the 200 training samples"):
        images(corrupted_labels=201)


def test_probes_hold_the_corrupted_samples_as_they_are() -> None:
    """Without augmentation, in order; shared out to ranks like the test set."""
    data = images(corrupted_labels=50, augment=lambda batch, rng: batch.flip(3))
    assert data.probes == ("train/corrupted_true_", "train/corrupted_false_")
    assert images().probes == ()
    for name, labels in (("train/corrupted_true_", data.true), ("train/corrupted_false_", data.train[1][data.where])):
        inputs, found = zip(*data.probe_batches(name, 20), strict=True)
        assert [len(batch) for batch in found] == [20, 20, 10]
        assert torch.equal(torch.cat(found), labels)
        expected = (data.train[0][data.where].float() - 127.5) / 63.75
        torch.testing.assert_close(torch.cat(inputs), expected)
        shared = [batch for rank in (0, 1) for _, batch in data.probe_batches(name, 20, rank, 2)]
        assert [len(batch) for batch in shared] == [20, 10, 20]


def test_the_metrics_of_every_epoch(tmp_path: Path) -> None:
    """A network that learns the labels it is shown knows the corrupted ones by them, and not by the true ones."""
    given = ["schedule.epochs=40", "schedule.batch_size=20", "schedule.lr=0.05", "model.hidden=[100,50]"]
    experiment = make(compose(["dataset=synthetic", "dataset.shape=[1,4,4]", "dataset.num_classes=10",
                               "dataset.train_size=200", "dataset.test_size=30", *given]))  # fmt: skip
    experiment.data = images(corrupted_labels=60)
    t = Trainer(experiment, RunDirectory(tmp_path))
    history = t.fit()
    data = experiment.data
    assert isinstance(data, Images)
    t.model.eval()
    with torch.no_grad():
        guesses = t.model((data.train[0][data.where].float() - 127.5) / 63.75).argmax(1)
    for name, labels in (("true", data.true), ("false", data.train[1][data.where])):
        assert history[-1][f"train/corrupted_{name}_accuracy"] == pytest.approx(
            100 * float((guesses == labels).double().mean())
        )
        assert all(f"train/corrupted_{name}_loss" in line for line in history)
    assert history[-1]["train/corrupted_false_accuracy"] > 90 > 50 > history[-1]["train/corrupted_true_accuracy"]
    assert history[-1]["train/accuracy"] > 90
