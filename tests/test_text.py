"""Text: vocabularies and token ids by hand, streams and segments against plain loops, every token once."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.images import content_digest
from data.streams import columns, segments, used
from data.text import EOS, NOTHING, Text, encode, vocabulary, words
from data.wikitext import split_path, wikitext
from runner.compose import compose
from runner.errors import Misuse
from runner.experiment import make, validate
from runner.identity import key
from tests import streams

ROOT = os.environ.get("REGROW_DATA", "")


def numbers(count: int) -> Tensor:
    """A text whose tokens say where they stand."""
    return torch.arange(count, dtype=torch.int32)


def cut(train: int = 50, test: int = 30, **changes: object) -> Text:
    given = {"num_classes": 1000, "rows": 3, "length": 4, **changes}
    return Text(numbers(train), numbers(test), **given)  # type: ignore[arg-type]


def batches(text: Text, epoch: int = 1, seed: int = 0) -> list[tuple[list[list[int]], list[list[int]], bool]]:
    order = text.order(seed, epoch)
    found = (text.batch(indices, 0) for indices in order.split(text.rows))
    return [(each.inputs.tolist(), each.targets.tolist(), each.begins) for each in found]


# Words


def test_words_and_the_end_of_every_line() -> None:
    assert list(words([" = Title = \n", " \n", "a  b\n"])) == ["=", "Title", "=", EOS, EOS, "a", "b", EOS]


def test_a_vocabulary_is_ordered_by_frequency_then_by_appearance() -> None:
    lines = ["b a <unk> b\n", "c <unk> b\n", "\n", "d c\n"]
    assert vocabulary(lines) == {EOS: 0, "b": 1, "<unk>": 2, "c": 3, "a": 4, "d": 5}
    assert list(vocabulary([" <eos> b \n"]).items()) == [(EOS, 0), ("b", 1)]  # a text that spells its ends out


def test_token_ids_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(" b é new \n \n", encoding="utf-8")
    known = {EOS: 0, "b": 1, "é": 2, "<unk>": 3}
    ids = encode(path, known)
    assert (ids.tolist(), ids.dtype) == ([1, 2, 3, 0, 0], torch.int32)
    with pytest.raises(ValueError, match="has words that the training text lacks, which knows no <unk>"):
        encode(path, {EOS: 0, "b": 1, "é": 2})


# Streams


@pytest.mark.parametrize(("tokens", "rows", "length"), [(50, 3, 4), (51, 3, 5), (49, 4, 3), (8, 4, 3), (103, 1, 10)])
def test_every_token_of_every_stream_is_predicted_once_from_the_one_before(tokens: int, rows: int, length: int) -> None:
    text = cut(tokens, rows=rows, length=length)
    each = tokens // rows
    found = batches(text)
    assert len(found) == text.train_size // rows == segments(tokens, rows, length)
    assert [begins for *_, begins in found] == [True] + [False] * (len(found) - 1)
    for row in range(rows):
        read = [token for inputs, _, _ in found for token in inputs[row]]
        predicted = [token for _, targets, _ in found for token in targets[row]]
        start = row * each
        assert read == list(range(start, start + each - 1))
        assert predicted == list(range(start + 1, start + each))
    sizes = {len(inputs[0]) for inputs, _, _ in found[:-1]}
    assert sizes <= {length} and 1 <= len(found[-1][0][0]) <= length


def test_the_papers_epoch_is_2101_steps() -> None:
    """WikiText-103 in 128 streams and segments of 384 (AC/DC, C.3: 48 epochs or 100,000 steps)."""
    assert (columns(103_227_021, 128), segments(103_227_021, 128, 384)) == (806_461, 2101)
    assert 47 * 2101 < 100_000 < 48 * 2101 == 100_848


def test_rolled_streams_begin_elsewhere_in_each_epoch_and_hold_the_same_tokens() -> None:
    text = cut(roll=True)
    plain = batches(cut())
    starts = []
    for epoch in range(1, 6):
        found = batches(text, epoch)
        assert found == batches(text, epoch)  # of seed and epoch alone
        for row in range(3):
            tokens = [t for inputs, _, _ in found for t in inputs[row]] + [found[-1][1][row][-1]]
            turn = tokens[0] - row * 16
            assert tokens == [row * 16 + (turn + i) % 16 for i in range(16)]
            starts.append(turn)
    assert len(set(starts)) > 5
    assert batches(text, 1) != plain and batches(text, 1, seed=1) != batches(text, 1)


def test_ranks_and_micro_batches_get_neighbouring_streams() -> None:
    text = cut(rows=4, roll=True)
    order = text.order(3, 2)
    second = order[4:8]
    whole, part = text.batch(second, 0), text.batch(second[1:3], 9)
    assert (part.stream, part.begins, whole.stream) == (1, False, 0)
    assert part.inputs.equal(whole.inputs[1:3]) and part.targets.equal(whole.targets[1:3])
    assert text.batch(order[2:4], 0)[2:] == (2, True)
    for mixed in (order[3:5], order[[0, 2]], order[[1, 0]]):
        with pytest.raises(ValueError, match="one segment of neighbouring streams"):
            text.batch(mixed, 0)


def test_a_subset_is_the_beginning_of_the_text() -> None:
    text = cut(train_subset=6)  # samples of 4 tokens
    assert text.train_size == 6 and used(50, 4, 6) == 24
    assert max(t for _, targets, _ in batches(text) for row in targets for t in row) == 23
    assert cut(train_subset=10**9).train_size == cut().train_size


# The test text


@pytest.mark.parametrize("warmup", [0, 1, 4, 7, 100])
@pytest.mark.parametrize(("tokens", "rows", "length"), [(30, 1, 4), (30, 3, 4), (31, 5, 2), (2, 3, 4), (97, 4, 5)])
def test_every_test_token_but_the_first_is_predicted_once(tokens: int, rows: int, length: int, warmup: int) -> None:
    text = cut(test=tokens, test_rows=rows, test_length=length, test_warmup=warmup)
    found = list(text.test_batches(1000))
    predicted: Counter[int] = Counter()
    for batch in found:
        where = batch.targets != NOTHING
        assert torch.equal(batch.targets[where], batch.inputs[where] + 1)
        predicted.update(batch.targets[where].tolist())
    assert predicted == Counter(range(1, tokens))
    assert [batch.begins for batch in found] == [True] + [False] * (len(found) - 1)
    read = torch.cat([batch.inputs for batch in found], dim=1)
    hits = torch.cat([batch.targets for batch in found], dim=1) != NOTHING
    for row, (inputs, hit) in enumerate(zip(read.tolist(), hits, strict=True)):
        places = hit.nonzero().view(-1).tolist()
        if not places:
            continue
        first, last = places[0], places[-1]
        assert inputs[: last + 1] == list(range(inputs[0], inputs[0] + last + 1))  # one contiguous stretch
        assert places == list(range(first, last + 1))
        assert first >= warmup if row else (first, inputs[0]) == (0, 0)
        assert first < warmup + length


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_share_the_test_streams(ranks: int) -> None:
    text = cut(test=97, test_rows=4, test_length=5, test_warmup=7)
    whole = list(text.test_batches(1))
    shares = [list(text.test_batches(1, rank, ranks)) for rank in range(ranks)]
    assert all(len(share) in (0, len(whole)) for share in shares)
    for number, batch in enumerate(whole):
        mine = [share[number] for share in shares if share]
        assert torch.cat([each.inputs for each in mine]).equal(batch.inputs)
        assert torch.cat([each.targets for each in mine]).equal(batch.targets)
        rows = torch.tensor([len(each.inputs) for each in mine])
        assert [each.stream for each in mine] == (rows.cumsum(0) - rows).tolist()


# Files


def test_a_text_read_from_its_files(tmp_path: Path) -> None:
    streams.write(tmp_path)
    data = make(compose(streams.overrides(tmp_path, "dataset.roll=false"))).data
    assert isinstance(data, Text)
    counts = Counter(word for line in streams.sentences(44, 0) for word in line)
    known = {EOS: 0} | {word: i for i, (word, _) in enumerate(counts.most_common(), start=1)}
    assert data.train.tolist() == streams.token_ids(streams.sentences(44, 0), known)
    assert data.test.tolist() == streams.token_ids([*streams.sentences(12, 1), []], known)
    assert (data.num_classes, data.in_shape, data.train_size) == (13, (8,), 44)


def test_either_name_of_a_file_will_do(tmp_path: Path) -> None:
    (tmp_path / "wikitext-2").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"train.txt is absent: the data root is .*; set data.root or REGROW_DATA"
    ):
        split_path(str(tmp_path), "wikitext-2", "train")
    archived = tmp_path / "wikitext-2" / "wiki.train.tokens"
    archived.write_text("a\n")
    assert split_path(str(tmp_path), "wikitext-2", "train") == archived


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("dataset.num_classes=14", "there are 13 words in .*valid.txt and <eos>, not 14"),
        ("dataset.train_tokens=351", "there are 352 tokens in .*valid.txt, not 351: it is not the whole text"),
        ("dataset.test_tokens=1", "there are 97 tokens in .*test.txt, not 1"),
        ("dataset.digest=0123456789abcdef", "the text's digest is [0-9a-f]{16}, not 0123456789abcdef"),
        ("dataset.rows=5", "schedule.batch_size = 4, but the text was cut into 5 streams"),
        ("dataset.train_subset=0", "train_subset = 0 should be in the range 1 <= x"),
        ("schedule.batch_size=300", "352 training and 97 test tokens are too few for 300 streams"),
        ("data.root=/nowhere", "valid.txt is absent: the data root is '/nowhere'"),
    ],
)
def test_another_text_is_refused(tmp_path: Path, change: str, sentence: str) -> None:
    streams.write(tmp_path)
    with pytest.raises(Misuse, match=sentence):
        make(compose(streams.overrides(tmp_path, change)))


def test_the_streams_follow_the_batch_size_of_the_schedule() -> None:
    config = compose(["experiment=acdc/wikitext103"])
    assert config["dataset"]["rows"] == config["schedule"]["batch_size"] == 128
    other = compose(["experiment=acdc/wikitext103", "schedule.batch_size=64"])
    assert other["dataset"]["rows"] == 64 and key(other) != key(config)
    validate(config)


@pytest.mark.skipif(not ROOT or not Path(ROOT, "wikitext-2", "valid.txt").exists(), reason="needs WikiText-2's splits")
def test_the_real_splits_have_the_published_sizes() -> None:
    section = compose(["dataset=wikitext2_valid_test"])["dataset"]
    options = {name: value for name, value in section.items() if name not in ("name", "revision", "_target_")}
    text = wikitext(root=ROOT, **options)
    assert (len(text.train), len(text.test), text.num_classes) == (217_646, 245_569, 13_777)
    assert content_digest(text.train, text.test) == options["digest"]
    assert int(text.train.max()) == 13_776 and int(text.test.max()) < 13_777
