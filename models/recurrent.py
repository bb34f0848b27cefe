"""Recurrent classifiers of token sequences: LSTM and bidirectional LSTM (Chijiwa et al. 2021, table 11)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from data.padding import PAD


class Recurrent(nn.Module):
    """embedding -> dropout -> lstm -> last hidden state of each direction -> dropout -> fc."""

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

    @staticmethod
    def example(in_shape: tuple[int, int], device: torch.device) -> Tensor:
        """One input of full length: (1, length)."""
        return torch.full((1, in_shape[1]), PAD + 1, dtype=torch.long, device=device)

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(ids))
        lengths = (ids != PAD).sum(1).clamp(min=1)
        if not self.lstm.bidirectional or ids.is_meta:
            # What comes before the end of a sequence does not see its padding. Packing it would give the same, but on
            # CPUs at a cost that grows with the square of the length: each step's gradient is one of the whole batch.
            output, _ = self.lstm(embedded)
            last = output.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, output.shape[2])).squeeze(1)
        else:
            packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
            _, (hidden, _) = self.lstm(packed)
            last = hidden[-2:].transpose(0, 1).flatten(1)
        logits = self.fc(self.dropout(last))
        # A sigmoid of z is the softmax of (0, z), and so is its cross-entropy.
        return torch.cat([torch.zeros_like(logits), logits], 1) if self.fc.out_features == 1 else logits


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
