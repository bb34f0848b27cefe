"""Classification: losses and counts by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from runner.task import Classification, read, stacked


class Fixed(nn.Module):
    """A model whose logits are its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_loss_and_accuracy_by_hand() -> None:
    task = Classification(num_classes=2)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    loss, sums = task.loss(Fixed(), (logits, torch.tensor([0, 1, 1])))
    by_hand = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    assert loss.item() == pytest.approx(sum(by_hand) / 3)
    metrics = task.metrics(sums)
    assert metrics == {"loss": pytest.approx(sum(by_hand) / 3), "accuracy": pytest.approx(200 / 3)}


def test_sums_of_uneven_batches_add_up_to_the_whole() -> None:
    task = Classification(num_classes=12)
    torch.manual_seed(0)
    logits, labels = torch.randn(23, 12), torch.randint(12, (23,))
    whole = task.loss(Fixed(), (logits, labels))[1]
    parts = sum(
        (task.loss(Fixed(), pair)[1] for pair in zip(logits.split(7), labels.split(7), strict=True)), torch.zeros(4)
    )
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-9)
    best = [labels[i] in logits[i].argsort(descending=True)[:5] for i in range(23)]
    assert task.metrics(whole)["accuracy_top5"] == pytest.approx(100 * sum(map(bool, best)) / 23)


def test_label_smoothing_changes_the_loss_trained_on_not_the_one_reported() -> None:
    logits, labels = torch.tensor([[4.0, 0.0]]), torch.tensor([0])
    smooth, sums = Classification(num_classes=2, label_smoothing=0.1).loss(Fixed(), (logits, labels))
    plain = math.log(1 + math.exp(-4))
    assert smooth.item() == pytest.approx(0.95 * plain + 0.05 * (plain + 4))
    assert Classification(num_classes=2).metrics(sums)["loss"] == pytest.approx(plain, rel=1e-5)
    assert Classification(num_classes=10).chance_loss == pytest.approx(2.302585)


def test_sums_read_at_once_are_those_that_stay_on_the_device() -> None:
    numbers = torch.tensor(2.3025851), torch.tensor(97), torch.tensor(99)
    assert torch.equal(read(128, *numbers), stacked(128, *numbers))
    assert read(128, *numbers).dtype == stacked(128, *numbers).dtype == torch.float64
