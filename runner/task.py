"""Tasks: how a batch becomes a loss, and which metrics it leaves, with their direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.device import widened


class Task(Protocol):
    """What the trainer asks of a task. `directions`: metric -> up or down, which is better; `metric`: the main one."""

    directions: ClassVar[dict[str, str]]
    metric: ClassVar[str]

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """(mean loss of a batch, sums that add up over batches and processes)."""

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Metrics from the added sums."""

    @property
    def outputs(self) -> Callable[[nn.Module, Any], Tensor] | None:
        """(model, batch) -> logits of shape (samples, classes), by which two networks are compared; or None."""

    @property
    def chance_loss(self) -> float:
        """The loss of a uniform guess."""

    def state_dict(self) -> dict[str, Any]:
        """State carried between training batches, this rank's own."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


@dataclass(kw_only=True)
class Classification:
    """Cross-entropy over classes; metrics are the mean loss and the accuracy in percent (top 1, and top 5 of many)."""

    num_classes: int
    label_smoothing: Annotated[float, "0 <= x < 1"] = 0.0

    directions: ClassVar[dict[str, str]] = {"accuracy": "up", "accuracy_top5": "up", "loss": "down"}
    metric: ClassVar[str] = "accuracy"

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(mean loss, sums). `batch`: inputs of shape (n, ...) and labels of shape (n,).

        The sums are float64: number of samples, summed unsmoothed loss, correct, correct among the top 5. They add up
        over batches and processes.
        """
        labels = batch[1]
        logits = self.outputs(model, batch)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            plain = loss.detach() if not self.label_smoothing else F.cross_entropy(logits, labels)
            correct = (logits.argmax(1) == labels).sum()
            top5 = correct
            if self.num_classes > 10:
                top5 = (logits.topk(5, dim=1).indices == labels[:, None]).any(1).sum()
            return loss, (read if plain.device.type == "cpu" else stacked)(len(labels), plain, correct, top5)

    def outputs(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The logits of a batch, of shape (n, classes)."""
        logits: Tensor = model(batch[0])
        return logits

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Metrics from the added sums."""
        n, loss, correct, top5 = sums.tolist()
        found = {"loss": loss / n, "accuracy": 100 * correct / n}
        if self.num_classes > 10:
            found["accuracy_top5"] = 100 * top5 / n
        return found

    @property
    def chance_loss(self) -> float:
        """The loss of a uniform guess: ln(number of classes)."""
        return math.log(self.num_classes)

    def state_dict(self) -> dict[str, Any]:
        """State carried between batches: none here."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


def read(n: int, loss: Tensor, correct: Tensor, top5: Tensor) -> Tensor:
    """The sums of `n` samples as `Classification.loss` has them; waits for the device, which the CPU never does."""
    return torch.tensor([n, loss.item() * n, correct.item(), top5.item()], dtype=torch.float64)


def stacked(n: int, loss: Tensor, correct: Tensor, top5: Tensor) -> Tensor:
    """As `read`, in three times as many operations, without waiting for the device."""
    sums = torch.stack([widened(loss) * n, widened(correct), widened(top5)])
    return torch.cat([sums.new_full((1,), n), sums])
