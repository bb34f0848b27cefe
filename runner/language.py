"""Language modelling: predict every token from those before it, with a memory carried from segment to segment."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from data.text import Segment
from runner.device import widened


@dataclass(kw_only=True)
class LanguageModelling:
    """Cross-entropy per token over a vocabulary of `num_classes`; metrics are its mean and the perplexity exp(mean).

    Each stream's memory is what the model gave for its last segment. Training and evaluation have one of their own; a
    stream that begins has none. What training carries is part of a checkpoint, on every rank that of its streams.
    """

    num_classes: int
    memory: dict[int, Tensor] = field(default_factory=dict, init=False)
    test_memory: dict[int, Tensor] = field(default_factory=dict, init=False)

    directions: ClassVar[dict[str, str]] = {"perplexity": "down", "loss": "down"}
    metric: ClassVar[str] = "perplexity"

    def loss(self, model: nn.Module, batch: Segment) -> tuple[Tensor, Tensor]:
        """(mean loss per predicted token, sums). The model: (inputs, targets, memory) -> (losses, next memory).

        Losses have the targets' shape (streams, tokens) and are 0 where nothing is to be predicted; a memory's second
        dimension counts streams. The sums are float64: number of predicted tokens, summed loss.
        """
        held = self.memory if model.training else self.test_memory
        if model.training:
            self.test_memory.clear()
        memory = None if batch.begins else held.get(batch.stream)
        if memory is not None and memory.shape[1] != len(batch.inputs):
            memory = None  # of a run that is resumed with another number of ranks, whose streams are dealt otherwise
        losses, held[batch.stream] = model(batch.inputs, batch.targets, memory)
        count = (batch.targets >= 0).sum()
        with torch.no_grad():
            sums = torch.stack([widened(count), widened(losses.detach()).sum()])
        return losses.sum() / count.clamp(min=1), sums

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Metrics from the added sums."""
        count, loss = sums.tolist()
        mean = loss / count
        try:
            return {"loss": mean, "perplexity": math.exp(mean)}
        except OverflowError:
            return {"loss": mean, "perplexity": math.inf}

    @property
    def outputs(self) -> None:
        """The model gives losses, not logits: networks are not compared sample by sample."""

    @property
    def chance_loss(self) -> float:
        """The loss of a uniform guess: ln(size of the vocabulary)."""
        return math.log(self.num_classes)

    def state_dict(self) -> dict[str, Any]:
        """The memory of this rank's training streams."""
        return {"memory": dict(self.memory)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.memory = dict(state["memory"])
