"""IMDB film reviews with a positive or a negative label (Maas et al. 2011): aclImdb's folders or an archive of them."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from data.base import absent
from data.cache import decoded
from data.padding import UNKNOWN, WORDS
from data.sequences import Sequences, Texts
from data.words import frequencies, tokens

ARCHIVES = ("aclImdb-labelled.tar.xz", "aclImdb_v1.tar.gz", "aclImdb.tar.gz", "aclImdb.tar.xz")
LABELS = {"neg": 0, "pos": 1}
SPLIT_SEED = 1234
LARGEST = 1_000_000  # bytes of a review: the longest has 14 thousand
READ = 1  # raised when the same files give other tensors

Count = Annotated[int, "1 <= x"]


def imdb(
    *,
    root: str,
    digest: str | None,
    reviews: Annotated[int, "2 <= x"] = 25000,
    validation: Annotated[int, "0 <= x"] = 7500,
    vocabulary: Annotated[int, "1 <= x"] = 25000,
    max_length: Count | None = None,
    train_subset: Count | None = None,
) -> Texts:
    """`reviews` labelled reviews for training, of which `validation` are held out, and as many for the test.

    Reads <root>/aclImdb/{train,test}/{neg,pos}/*.txt, or the archive of those folders that lies in <root> under one of
    the names in `ARCHIVES`. The `vocabulary` most frequent words of the training part have ids, all others are unknown.
    Which reviews are held out is a fixed draw, the same in every run. `max_length`: the first so many tokens of a
    review are read. FileNotFoundError when neither is there, ValueError when they hold another number of reviews,
    nothing is left to train on, or the archive is damaged.
    """
    if validation >= reviews:
        raise ValueError(f"validation = {validation} leaves nothing of {reviews} reviews to train on")
    source = _source(root)
    held = f"{READ} {reviews} {validation}"
    train, test = decoded(source, f"{held} {_fingerprint(source)}", lambda: _read(source, reviews, validation))
    kept = len(train[2]) - validation
    return Texts(
        Sequences(*train).part(torch.arange(kept)),
        Sequences(*train).part(torch.arange(kept, kept + validation)),
        Sequences(*test),
        num_classes=len(LABELS),
        words=WORDS + vocabulary,
        max_length=max_length,
        train_subset=train_subset,
        digest=digest,
    )


def _source(root: str) -> Path:
    folder = Path(root) / "aclImdb"
    for path in (folder, *(Path(root, name) for name in ARCHIVES)):
        if path.exists():
            return path
    raise absent(folder, root, f"put {ARCHIVES[1]} there, which ai.stanford.edu/~amaas/data/sentiment has")


def _fingerprint(source: Path) -> str:
    """What changes when the reviews do: the archive's size and time, or the names and sizes of all files."""
    if source.is_file():
        state = source.stat()
        return f"{state.st_size} {state.st_mtime_ns}"
    h = hashlib.sha256()
    for part in ("train", "test"):
        for kind in LABELS:
            for path in sorted((source / part / kind).glob("*.txt")):
                h.update(f"{part} {kind} {path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return h.hexdigest()


def _read(source: Path, reviews: int, validation: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(ids, ends, labels) of the training reviews, those held out last, and of the test's."""
    found: dict[str, dict[tuple[str, str], str]] = {"train": {}, "test": {}}
    for part, kind, name, text in _folder(source) if source.is_dir() else _archive(source):
        found[part][kind, name] = text
    for part, texts in found.items():
        if len(texts) != reviews:
            raise ValueError(f"{source} has {len(texts)} labelled reviews in {part}, not {reviews}; unpack it again")
    # Not the order of files in an archive or a folder, which is nobody's promise: by label and name.
    train, test = ([(texts[at], LABELS[at[0]]) for at in sorted(texts)] for texts in found.values())
    order = torch.randperm(reviews, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    words = [(tokens(train[i][0]), train[i][1]) for i in order]
    ids = frequencies(text for text, _ in words[: reviews - validation])
    return _packed(words, ids), _packed(((tokens(text), label) for text, label in test), ids)


def _packed(reviews: Iterable[tuple[list[str], int]], ids: dict[str, int]) -> tuple[Tensor, ...]:
    flat = array("i")
    ends, labels = [], []
    for words, label in reviews:
        flat.extend(ids.get(word, UNKNOWN) for word in words)
        ends.append(len(flat))
        labels.append(label)
    return torch.from_numpy(np.frombuffer(flat, np.int32).copy()), torch.tensor(ends), torch.tensor(labels)


def _folder(source: Path) -> Iterator[tuple[str, str, str, str]]:
    for part in ("train", "test"):
        for kind in LABELS:
            for path in (source / part / kind).glob("*.txt"):
                yield part, kind, path.name, path.read_text(encoding="utf-8")


def _archive(source: Path) -> Iterator[tuple[str, str, str, str]]:
    """Part, label, file name and text of every labelled review; nothing is unpacked."""
    try:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                place = member.name.removeprefix("./").split("/")
                if len(place) != 4 or place[0] != "aclImdb" or place[1] not in ("train", "test"):
                    continue
                if place[2] in LABELS and place[3].endswith(".txt") and member.isfile():
                    if member.size > LARGEST:
                        raise ValueError(f"{member.name} would unpack to {member.size:,} bytes")
                    file = archive.extractfile(member)
                    assert file is not None
                    yield place[1], place[2], place[3], file.read().decode("utf-8")
    except (tarfile.TarError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{source} is not a whole archive of reviews ({error}); copy it again") from error
