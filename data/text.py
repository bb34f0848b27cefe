"""Text as parallel streams of tokens that are read on from batch to batch, for models with a memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.base import Dataset
from data.images import content_digest
from data.order import derive
from data.streams import columns, segments, used

EOS, UNKNOWN = "<eos>", "<unk>"
NOTHING = -1  # the target where nothing is to be predicted


class Segment(NamedTuple):
    """The next tokens of some neighbouring streams.

    `inputs`, `targets`: int64 of shape (streams, tokens); a target is the token after its input, or NOTHING.
    `stream`: the number of the first of these streams. `begins`: nothing of them was read before.
    """

    inputs: Tensor
    targets: Tensor
    stream: int
    begins: bool


class Text(Dataset):
    """Token ids as streams. A sample is a segment of `length` tokens of one stream; batches are of all streams.

    `train`, `test`: one-dimensional tensors of token ids below `num_classes`, the size of the vocabulary. The training
    text is cut into `rows` equal streams, as the official code of Transformer-XL does (Dai et al. 2019): every batch
    has the next segment of each, so that `rows` must be the batch size. `roll`: before each epoch every stream is
    turned by a number of tokens of its own, so that it begins elsewhere (the public recipe of NVIDIA's, `--roll`).

    The test text is read in `test_rows` streams and segments of `test_length`, which predict every token but the first
    exactly once. All streams but the first read some segments before their own stretch, at least `test_warmup` tokens:
    they fill the model's memory and predict nothing.
    """

    def __init__(
        self,
        train: Tensor,
        test: Tensor,
        *,
        num_classes: int,
        rows: int,
        length: int,
        roll: bool = False,
        test_rows: int = 1,
        test_length: int = 128,
        test_warmup: int = 0,
        train_subset: int | None = None,
        digest: str | None = None,
    ) -> None:
        if digest is not None and digest != (found := content_digest(train, test)):
            raise ValueError(f"the text's digest is {found}, not {digest}: this is not the text the numbers belong to")
        train = train[: used(len(train), length, train_subset)]
        if columns(len(train), rows) < 2 or len(test) < 2:
            raise ValueError(f"{len(train)} training and {len(test)} test tokens are too few for {rows} streams")
        self.train, self.test = train, test
        self.num_classes = num_classes
        self.in_shape = (length,)
        self.batch_size = self.rows = rows
        self.length, self.roll = length, roll
        self.test_rows, self.test_length = test_rows, test_length
        self.warmup = -(-test_warmup // test_length) if test_rows > 1 else 0
        self.columns = columns(len(train), rows)

    @property
    def train_size(self) -> int:
        return self.rows * segments(len(self.train), self.rows, self.length)

    def to(self, device: torch.device) -> Text:
        self.train, self.test = self.train.to(device), self.test.to(device)
        return self

    def order(self, seed: int, epoch: int) -> Tensor:
        """The segments one after another, each of all streams.

        A number holds the segment's own, its stream's and by how much that is turned in this epoch:
        (segment * rows + stream) * (tokens of a stream) + turn.
        """
        turns = torch.zeros(self.rows, dtype=torch.int64)
        if self.roll:
            rng = torch.Generator().manual_seed(derive(seed, "roll", epoch))
            turns = torch.randint(self.columns, (self.rows,), generator=rng)
        samples = torch.arange(self.train_size)
        return samples * self.columns + turns[samples % self.rows]

    def batch(self, indices: Tensor, seed: int) -> Segment:
        """The same segment of neighbouring streams; ValueError when `indices`, numbers of `order`, are not of such."""
        turn = indices % self.columns
        stream, segment = indices // self.columns % self.rows, indices // self.columns // self.rows
        first, at = int(stream[0]), int(segment[0]) * self.length
        if not (segment == segment[0]).all() or not (stream == torch.arange(first, first + len(stream))).all():
            raise ValueError(
                "a batch of a text has one segment of neighbouring streams; take them as `order` gives them"
            )
        size = min(self.length, self.columns - 1 - at)
        places = (turn[:, None] + at + torch.arange(size + 1)) % self.columns + stream[:, None] * self.columns
        tokens = self.train[places.to(self.train.device)].long()
        return Segment(tokens[:, :-1], tokens[:, 1:], first, at == 0)

    def test_batches(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator[Segment]:
        """The test text once; of several ranks each gets some of the streams. `size` is not asked for: a row is one."""
        rows = torch.arange(self.test_rows).tensor_split(ranks)[rank]
        if not len(rows):
            return
        length, last = self.test_length, len(self.test) - 1
        # The first stream has no text before it: what the others read in vain, it predicts.
        own = max(-(-(last - self.warmup * length) // (self.test_rows * length)), 0)
        for number in range(self.warmup + own):
            start = rows[:, None] * own * length + number * length
            places = start + torch.arange(length)
            predicted = (places < last) & ((rows[:, None] == 0) | (number >= self.warmup))
            places = places.clamp(max=last - 1).to(self.test.device)
            targets = self.test[places + 1].long().masked_fill(~predicted.to(self.test.device), NOTHING)
            yield Segment(self.test[places].long(), targets, int(rows[0]), number == 0)


def words(lines: Iterable[str]) -> Iterator[str]:
    """The words of a text, split at white space, with EOS after every line: the empty ones, too."""
    for line in lines:
        yield from line.split()
        yield EOS


def vocabulary(lines: Iterable[str]) -> dict[str, int]:
    """Word -> id: EOS is 0, then by falling frequency, equally frequent ones in the order of the text."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line.split())
    counts.pop(EOS, None)
    return {word: number for number, word in enumerate([EOS, *(word for word, _ in counts.most_common())])}


def encode(path: Path, known: dict[str, int]) -> Tensor:
    """The ids of a file's words, int32; those that are not known become UNKNOWN's.

    ValueError when the text needs UNKNOWN and the vocabulary has none.
    """
    unknown = known.get(UNKNOWN, NOTHING)
    ids = array("i")
    with path.open(encoding="utf-8") as lines:
        ids.extend(known.get(word, unknown) for word in words(lines))
    if unknown == NOTHING and ids.count(NOTHING):
        raise ValueError(f"{path} has words that the training text lacks, which knows no {UNKNOWN} to stand for them")
    return torch.from_numpy(np.array(ids, dtype=np.int32))
