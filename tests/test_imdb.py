"""IMDB's reviews: tokens, vocabulary, split and padding, on a miniature of the archive; the real one's counts."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data import imdb as module
from data.imdb import imdb
from data.padding import PAD, UNKNOWN, WORDS
from data.sequences import Sequences, Texts
from data.words import frequencies, tokens
from models.recurrent import lstm
from runner.compose import compose
from runner.execute import execute

# part, label, file, text
REVIEWS = [
    (part, kind, f"{number}_{score}.txt", text)
    for part, shift in (("train", 0), ("test", 100))
    for kind, score, word in (("neg", 2, "dull"), ("pos", 9, "fine"))
    for number, text in enumerate(
        f"{word} film {shift + i} " + "the " * (i % 4) + ("Wow!<br /><br />" if i % 2 else "so-so") for i in range(5)
    )
]
MINI: dict[str, Any] = {"digest": None, "reviews": 10, "validation": 3, "vocabulary": 4}


def write(root: Path, kind: str, reviews: list[tuple[str, str, str, str]] = REVIEWS) -> Path:
    """The reviews as folders or as an archive (with unlabelled ones and other files, which are not for us)."""
    extra = [("train", "unsup", "0_0.txt", "who knows"), ("train", "neg", "labels.dat", "not a review")]
    if kind == "folder":
        for part, label, name, text in reviews + extra:
            path = root / "aclImdb" / part / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return root / "aclImdb"
    path = root / kind
    with tarfile.open(path, "w:xz" if kind.endswith("xz") else "w:gz") as archive:
        for part, label, name, text in reversed(reviews + extra):
            member = tarfile.TarInfo(f"aclImdb/{part}/{label}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def everything(data: Texts) -> list[list[int]]:
    parts = (data.train, data.validation, data.test)
    return [tensor.tolist() for part in parts for tensor in (part.ids, part.ends, part.labels)]


def test_tokens_by_hand() -> None:
    assert tokens("It's <br />FINE, isn't it?") == ["it", "'", "s", "fine", ",", "isn", "'", "t", "it", "?"]
    assert tokens('A "so-so" film; (10/10): wow!..') == ["a", "so-so", "film", "(", "10/10", ")", "wow", "!", ".", "."]
    assert tokens("<BR/> \n\t") == []


def test_words_are_ranked_by_count_then_by_alphabet() -> None:
    assert frequencies([["b", "a", "c"], ["b", "c"], ["c"]]) == {"c": WORDS, "b": WORDS + 1, "a": WORDS + 2}
    assert list(frequencies([["z", "y"], ["x"]])) == ["x", "y", "z"]
    assert {UNKNOWN, PAD} == set(range(WORDS))


@pytest.mark.parametrize("kind", ["folder", "aclImdb_v1.tar.gz", "aclImdb-labelled.tar.xz"])
def test_the_split_and_the_ids_by_hand(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind)
    data = imdb(root=str(tmp_path), **MINI)
    assert (data.train_size, len(data.validation.labels), len(data.test.labels)) == (7, 3, 10)
    assert data.num_classes == 2 and data.in_shape == (6, 8)
    ordered = sorted((label, name, text) for part, label, name, text in REVIEWS if part == "train")
    draw = torch.randperm(10, generator=torch.Generator().manual_seed(1234)).tolist()
    texts = [tokens(ordered[i][2]) for i in draw]
    counts = Counter(word for text in texts[:7] for word in text)  # held-out reviews make no vocabulary
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    known = {word: WORDS + i for i, word in enumerate(ranked[:4])}
    for part, at in ((data.train, range(7)), (data.validation, range(7, 10))):
        assert part.labels.tolist() == [int(ordered[draw[i]][0] == "pos") for i in at]
        ids, _ = part.padded(torch.arange(len(at)), None, data.words)
        for row, i in zip(ids.tolist(), at, strict=True):
            expected = [known.get(word, UNKNOWN) for word in texts[i]]
            assert row == expected + [PAD] * (len(row) - len(expected))
    assert data.test.labels.tolist() == [0] * 5 + [1] * 5


def test_folders_and_archives_give_the_same_whatever_their_order(tmp_path: Path) -> None:
    found = []
    for kind in ("folder", "aclImdb_v1.tar.gz"):
        (tmp_path / kind).mkdir()
        write(tmp_path / kind, kind)
        found.append(everything(imdb(root=str(tmp_path / kind), **MINI)))
    assert found[0] == found[1]


def test_the_cache_serves_until_a_review_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "folder")
    read, times = module._read, []
    monkeypatch.setattr(module, "_read", lambda *a: (times.append(a), read(*a))[1])
    first = everything(imdb(root=str(tmp_path), **MINI))
    assert everything(imdb(root=str(tmp_path), **MINI)) == first and len(times) == 1
    assert everything(imdb(root=str(tmp_path), **{**MINI, "validation": 2})) != first and len(times) == 2
    assert everything(imdb(root=str(tmp_path), **MINI)) == first and len(times) == 3
    path = tmp_path / "aclImdb" / "train" / "neg" / "0_2.txt"
    path.write_text(path.read_text() + " again", encoding="utf-8")
    assert everything(imdb(root=str(tmp_path), **MINI)) != first and len(times) == 4


def test_a_batch_by_hand() -> None:
    part = Sequences(torch.tensor([5, 6, 7, 8, 9], dtype=torch.int32), torch.tensor([3, 3, 5]), torch.tensor([1, 0, 1]))
    ids, labels = part.padded(torch.tensor([2, 0, 1]), None, 8)  # 8 and 9 are beyond the vocabulary
    assert ids.tolist() == [[0, 0, 1], [5, 6, 7], [1, 1, 1]] and labels.tolist() == [1, 1, 0]
    assert ids.dtype == torch.int64
    assert part.padded(torch.tensor([0, 2]), 2, 100)[0].tolist() == [[5, 6], [8, 9]]
    assert part.padded(torch.tensor([1]), None, 100)[0].tolist() == [[PAD]]  # an empty review
    some = part.part(torch.tensor([2, 0]))
    assert (some.ids.tolist(), some.ends.tolist(), some.labels.tolist()) == ([8, 9, 5, 6, 7], [2, 5], [1, 1])
    with pytest.raises(ValueError, match="do not fit"):
        Sequences(part.ids, torch.tensor([3, 4]), torch.tensor([0, 1]))


def test_every_test_review_comes_once_and_ranks_share_the_batches(tmp_path: Path) -> None:
    write(tmp_path, "folder")
    data = imdb(root=str(tmp_path), **MINI, max_length=3)
    assert data.in_shape == (6, 3)
    whole = list(data.test_batches(4))
    assert [len(labels) for _, labels in whole] == [4, 4, 2] and sum(int(y.sum()) for _, y in whole) == 5
    assert all(ids.shape[1] <= 3 for ids, _ in whole)
    first, second = list(data.test_batches(4, 0, 2)), list(data.test_batches(4, 1, 2))
    assert [len(y) for _, y in first] == [4, 2] and [len(y) for _, y in second] == [4]
    assert torch.equal(second[0][0], whole[1][0])
    assert sum(len(y) for _, y in data.probe_batches("validation/", 2)) == 3


def test_batches_of_long_sequences_are_smaller() -> None:
    lengths = torch.tensor([2000, 3, 256, 512, 300, 1])
    part = Sequences(torch.full((int(lengths.sum()),), 5, dtype=torch.int32), lengths.cumsum(0), torch.arange(6))
    nothing = Sequences(torch.empty(0, dtype=torch.int32), torch.empty(0).long(), torch.empty(0).long())
    data = Texts(part, nothing, part, num_classes=6, words=10)
    batches = [labels.tolist() for _, labels in data.test_batches(2)]
    assert batches == [[5, 1], [2], [4], [3], [0]]  # two of at most 256 tokens, else as many tokens as those
    assert [labels.tolist() for _, labels in data.test_batches(2, 1, 2)] == [[2], [3]]


def test_a_subset_is_of_what_is_not_held_out(tmp_path: Path) -> None:
    write(tmp_path, "folder")
    whole, part = (imdb(root=str(tmp_path), **MINI, train_subset=n) for n in (None, 4))
    assert part.train_size == 4 and everything(part)[3:] == everything(whole)[3:]


def test_bad_reviews_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"aclImdb is absent: the data root is .*put aclImdb_v1\.tar\.gz there"):
        imdb(root=str(tmp_path), **MINI)
    path = write(tmp_path, "aclImdb_v1.tar.gz")
    with pytest.raises(ValueError, match=r"has 10 labelled reviews in train, not 11; unpack it again"):
        imdb(root=str(tmp_path), **{**MINI, "reviews": 11})
    with pytest.raises(ValueError, match="validation = 10 leaves nothing of 10 reviews to train on"):
        imdb(root=str(tmp_path), **{**MINI, "validation": 10})
    with pytest.raises(ValueError, match=r"the data's digest is \w+, not abc"):
        imdb(root=str(tmp_path), **{**MINI, "digest": "abc"})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is not a whole archive of reviews"):
        imdb(root=str(tmp_path), **MINI)


def test_a_run_on_the_miniature(tmp_path: Path) -> None:
    write(tmp_path, "folder")
    given = ["dataset=imdb", "dataset.digest=null", "dataset.reviews=10", "dataset.validation=3", "model=lstm"]
    given += ["model.hidden_dim=8", "model.embedding_dim=8", "dataset.vocabulary=20", "schedule.batch_size=4"]
    given += ["schedule.epochs=4", f"data.root={tmp_path}", f"runs={tmp_path / 'runs'}"]
    summary = execute(compose(given), given)
    assert summary["status"] == "completed" and summary["steps"] == 4 * 2  # 7 reviews in batches of 4
    assert {"test/accuracy", "validation/accuracy", "validation/loss"} <= set(summary["final"])


# The network


def test_the_lstm_reads_no_padding_and_two_classes_are_a_sigmoid() -> None:
    torch.manual_seed(0)
    for both in (False, True):
        model: Any = lstm(
            num_classes=2, in_shape=(20, 9), bidirectional=both, embedding_dim=5, hidden_dim=4, dropout=0.5
        ).eval()
        ids = torch.randint(WORDS, 20, (3, 9))
        ids[0, 4:] = PAD
        ids[1, 1:] = PAD
        logits = model(ids)
        for row, length in zip(range(3), (4, 1, 9), strict=True):
            _, (hidden, _) = model.lstm(model.embedding(ids[row : row + 1, :length]))
            z = model.fc(hidden.flatten())
            assert torch.allclose(logits[row], torch.cat([torch.zeros(1), z]), atol=1e-6)
            loss = nn.functional.cross_entropy(logits[row : row + 1], torch.tensor([1]))
            assert torch.allclose(loss, nn.functional.binary_cross_entropy_with_logits(z, torch.ones(1)), atol=1e-6)
        assert model.fc.out_features == 1
        assert sum(p.numel() for p in model.lstm.parameters()) == (2 if both else 1) * 4 * 4 * (5 + 4 + 2)
    deep: Any = lstm(
        num_classes=2, in_shape=(20, 9), bidirectional=True, embedding_dim=5, hidden_dim=4, layers=2
    ).eval()
    packed = nn.utils.rnn.pack_padded_sequence(deep.embedding(ids), torch.tensor([4, 1, 9]), True, enforce_sorted=False)
    _, (hidden, _) = deep.lstm(packed)
    assert torch.allclose(deep(ids)[:, 1:], deep.fc(torch.cat([hidden[-2], hidden[-1]], 1)), atol=1e-6)
    assert lstm(num_classes=3, in_shape=(20, 9), bidirectional=False)(ids).shape == (3, 3)
    with pytest.raises(ValueError, match=r"an LSTM takes token sequences, not inputs of shape \(3, 8, 8\)"):
        lstm(num_classes=2, in_shape=(3, 8, 8), bidirectional=False)  # type: ignore[arg-type]


# The real reviews


@pytest.mark.slow
def test_the_real_reviews() -> None:
    root = os.environ.get("REGROW_DATA")
    if root is None or not any(Path(root, name).exists() for name in ("aclImdb", *module.ARCHIVES)):
        pytest.skip("REGROW_DATA has no IMDB reviews")
    section = compose(["dataset=imdb"])["dataset"]
    options = {name: section[name] for name in ("digest", "reviews", "validation", "vocabulary", "max_length")}
    data = imdb(root=root, **options)
    assert (data.train_size, len(data.validation.labels), len(data.test.labels)) == (17500, 7500, 25000)
    assert data.test.labels.bincount().tolist() == [12500, 12500]
    assert (data.train.labels.bincount() + data.validation.labels.bincount()).tolist() == [12500, 12500]
    assert data.in_shape == (25002, 2752)
    assert [len(part.ids) for part in (data.train, data.validation, data.test)] == [4727470, 2039675, 6615476]
    most = data.train.ids.bincount().argsort(descending=True)[:3]
    assert most.tolist() == [WORDS, WORDS + 1, WORDS + 2]
