"""Token sequences that live as one tensor on the device, padded batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data.base import Dataset
from data.images import content_digest, proportional_part
from data.padding import PAD, UNKNOWN

LONG = 256  # tokens; a batch of longer sequences than these has fewer of them


@dataclass
class Sequences:
    """Sequences one after the other: `ids`, int32 of shape (all tokens,); sequence i is ids[ends[i - 1]:ends[i]].

    `ends` and `labels`: int64 of shape (n,).
    """

    ids: Tensor
    ends: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if len(self.ends) != len(self.labels) or (len(self.ends) and int(self.ends[-1]) != len(self.ids)):
            raise ValueError(f"{len(self.labels)} labels and {len(self.ids)} tokens do not fit {len(self.ends)} ends")
        self.starts = torch.cat([self.ends.new_zeros(1), self.ends[:-1]])

    def to(self, device: torch.device) -> Sequences:
        return Sequences(self.ids.to(device), self.ends.to(device), self.labels.to(device))

    def part(self, chosen: Tensor) -> Sequences:
        """The sequences at these positions, in their order."""
        starts, lengths = self.starts[chosen], (self.ends - self.starts)[chosen]
        ends = lengths.cumsum(0)
        within = torch.arange(int(lengths.sum())) - (ends - lengths).repeat_interleave(lengths)
        return Sequences(self.ids[within + starts.repeat_interleave(lengths)], ends, self.labels[chosen])

    def padded(self, chosen: Tensor, longest: int | None, words: int) -> tuple[Tensor, Tensor]:
        """(int64 ids of shape (n, length), labels): the first `longest` tokens of each, the rest padded.

        The batch is as long as its longest sequence (and never empty); ids from `words` on are unknown words.
        """
        starts = self.starts[chosen]
        lengths = self.ends[chosen] - starts
        if longest is not None:
            lengths = lengths.clamp(max=longest)
        at = torch.arange(max(1, int(lengths.max())), device=starts.device)
        inside = at < lengths[:, None]
        ids = self.ids[(starts[:, None] + at).masked_fill_(~inside, 0)].long()
        return ids.masked_fill_(ids >= words, UNKNOWN).masked_fill_(~inside, PAD), self.labels[chosen]


class Texts(Dataset):
    """A classification dataset of token sequences.

    `words`: the number of different ids, of words and the two special ones (`data.padding`); rarer words are unknown.
    `max_length`: so many tokens of each sequence are read, its first ones; None: all. `in_shape`: (words, the most
    tokens of one input). `validation`: what is held out, the probe "validation/". `train_subset` as of images.
    ValueError when `digest` is not that of the data.
    """

    def __init__(
        self,
        train: Sequences,
        validation: Sequences,
        test: Sequences,
        *,
        num_classes: int,
        words: int,
        max_length: int | None = None,
        train_subset: int | None = None,
        digest: str | None = None,
    ) -> None:
        whole = [tensor for part in (train, validation, test) for tensor in (part.ids, part.ends, part.labels)]
        if digest is not None and digest != (found := content_digest(*whole)):
            raise ValueError(
                f"the data's digest is {found}, not {digest}: these are not the data the numbers belong to"
            )
        if train_subset is not None and train_subset < len(train.labels):
            train = train.part(proportional_part(train.labels, train_subset))
        self.train, self.validation, self.test = train, validation, test
        self.probes = ("validation/",) if len(validation.labels) else ()
        self.num_classes = num_classes
        self.words, self.max_length = words, max_length
        longest = max(int((part.ends - part.starts).max()) for part in (train, validation, test) if len(part.labels))
        self.in_shape = (words, longest if max_length is None else max_length)

    @property
    def train_size(self) -> int:
        return len(self.train.labels)

    def to(self, device: torch.device) -> Texts:
        """Move everything to the device once."""
        self.train, self.validation, self.test = (x.to(device) for x in (self.train, self.validation, self.test))
        return self

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Training sequences as (ids, labels); nothing is augmented."""
        return self.train.padded(indices.to(self.train.ends.device), self.max_length, self.words)

    def test_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The test set, every sequence once; sorted by length, so that little is padded, and fewer of long ones."""
        return self._batches(self.test, size, rank, ranks)

    def probe_batches(self, name: str, size: int, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches({"validation/": self.validation}[name], size, rank, ranks)

    def _batches(self, part: Sequences, size: int, rank: int, ranks: int) -> Iterator[tuple[Tensor, Tensor]]:
        for at in self._cut(part, size)[rank::ranks]:
            yield part.padded(at, self.max_length, self.words)

    def _cut(self, part: Sequences, size: int) -> list[Tensor]:
        """The positions in `part` of batches of `size`; fewer of long sequences, so that memory is bounded."""
        lengths = part.ends - part.starts
        if self.max_length is not None:
            lengths = lengths.clamp(max=self.max_length)
        order = lengths.argsort(stable=True)
        ascending = lengths[order].tolist()
        batches, start = [], 0
        while start < len(order):
            longest = max(1, ascending[min(start + size, len(order)) - 1])
            count = max(1, min(size, size * LONG // longest))
            batches.append(order[start : start + count])
            start += count
        return batches
