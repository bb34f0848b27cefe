"""Recurrent classifiers of token sequences: LSTM and bidirectional LSTM (Chijiwa et al. 2021, table 11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from data.padding import PAD


class Recurrent(nn.Module):
    """embedding -> dropout -> lstm -> last hidden state of each direction -> dropout -> fc.

    What comes before the end of a sequence does not see the padding after it, so that the last state is found there; a
    second direction reads each sequence turned round by itself. Packed sequences give the same, but on CPUs at a cost
    that grows with the square of the length, since the gradient of every step is as large as the batch.
    """

    #: Of a sequence every step costs the same, so that two of them tell the cost of all (`models.counter`).
    steps_alike = True

    def __init__(
        self, tokens: int, outputs: int, embedding_dim: int, hidden_dim: int, layers: int, both: bool, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding_dim, padding_idx=PAD)
        self.lstm = nn.LSTM(
            embedding_dim,
            hidden_dim,
            layers,
            batch_first=True,
            bidirectional=both,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden_dim * (2 if both else 1), 1 if outputs == 2 else outputs)

    def example(self, in_shape: Sequence[int]) -> tuple[Tensor]:
        """Arguments of `forward` for counting operations: one sequence of full length."""
        return (torch.full((1, in_shape[1]), PAD + 1, dtype=torch.long, device=self.fc.weight.device),)

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(ids))
        lengths = (ids != PAD).sum(1).clamp(min=1)
        output = self._both(embedded, lengths) if self.lstm.bidirectional else self.lstm(embedded)[0]
        last = output.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, output.shape[2])).squeeze(1)
        logits = self.fc(self.dropout(last))
        # A sigmoid of z is the softmax of (0, z), and so is its cross-entropy.
        return torch.cat([torch.zeros_like(logits), logits], 1) if self.fc.out_features == 1 else logits

    def _both(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Outputs (n, length, 2 hidden) of both directions; those of the second as they lie when it reads backwards."""
        net = self.lstm
        place = torch.arange(x.shape[1], device=x.device)
        mirrored = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)[:, :, None]
        zero = x.new_zeros(1, x.shape[0], net.hidden_size)
        forwards, backwards = x, x.gather(1, mirrored.expand_as(x))
        for layer in range(net.num_layers):
            if layer:
                # Each direction reads both ones' outputs, in its own order.
                turned = [o.gather(1, mirrored.expand_as(o)) for o in (forwards, backwards)]
                both = torch.cat([forwards, turned[1]], 2), torch.cat([turned[0], backwards], 2)
                drop = nn.functional.dropout(torch.ones_like(both[0]), net.dropout, self.training)
                forwards = both[0] * drop
                backwards = both[1] * drop.gather(1, mirrored.expand_as(drop))
            forwards, backwards = (
                torch._VF.lstm(
                    read,
                    (zero, zero),
                    [
                        getattr(net, f"{name}_l{layer}{end}")
                        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                    ],
                    True,
                    1,
                    0.0,
                    self.training,
                    False,
                    True,
                )[0]
                for read, end in ((forwards, ""), (backwards, "_reverse"))
            )
        return torch.cat([forwards, backwards], 2)


def lstm(
    *,
    num_classes: int,
    in_shape: tuple[int, int],
    bidirectional: bool,
    embedding_dim: Annotated[int, "1 <= x"] = 100,
    hidden_dim: Annotated[int, "1 <= x"] = 256,
    layers: Annotated[int, "1 <= x"] = 1,
    dropout: Annotated[float, "0 <= x < 1"] = 0.2,
) -> nn.Module:
    """Token sequences (N, length) of ids, padded with `data.padding.PAD` at their ends -> logits (N, num_classes).

    `in_shape`: (number of different ids, length). What the classifier sees is as if sequences were packed, so that
    padding is never read: the last layer's last hidden states. Two classes have one output z and a sigmoid: the logits
    are 0 and z.
    `dropout` acts on embeddings and on what the classifier sees, and between layers (Trevett's notebook, from which the
    paper's experiment comes). All initial values are PyTorch's default; the padding's embedding stays 0. Layers:
    "embedding", "lstm", "fc". ValueError for a value out of range.
    """
    if len(in_shape) != 2:
        raise ValueError(f"an LSTM takes token sequences, not inputs of shape {tuple(in_shape)}; use dataset=imdb")
    for name, value in (("embedding_dim", embedding_dim), ("hidden_dim", hidden_dim), ("layers", layers)):
        if value < 1:
            raise ValueError(f"{name} is at least 1, not {value}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), not {dropout}")
    return Recurrent(in_shape[0], num_classes, embedding_dim, hidden_dim, layers, bidirectional, dropout)
