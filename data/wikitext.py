"""WikiText-2 and WikiText-103 (Merity et al. 2017), word by word, from their token files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from data.base import absent
from data.text import Text, encode, vocabulary

Split = Literal["train", "valid", "test"]
Count = Annotated[int, "1 <= x"]


def wikitext(
    *,
    root: str,
    folder: str,
    train: Split,
    test: Split,
    digest: str | None,
    num_classes: Count,
    train_tokens: Count,
    test_tokens: Count,
    rows: Count,
    length: Count,
    roll: bool,
    test_rows: Count,
    test_length: Count,
    test_warmup: Annotated[int, "0 <= x"],
    train_subset: Count | None = None,
) -> Text:
    """The splits `train` and `test` of <root>/<folder> as a `Text`, whose vocabulary is that of the training split.

    A split is the file <split>.txt, or wiki.<split>.tokens as it is distributed: words and <unk>, separated by blanks.
    FileNotFoundError when there is neither. ValueError when the vocabulary (<eos> included) or a split (an <eos> for
    each line included) has another size than `num_classes`, `train_tokens` and `test_tokens` say.
    """
    paths = {split: split_path(root, folder, split) for split in (train, test)}
    with paths[train].open(encoding="utf-8") as lines:
        known = vocabulary(lines)
    ids = {split: encode(path, known) for split, path in paths.items()}
    for what, found, wanted in (
        (f"words in {paths[train]} and <eos>", len(known), num_classes),
        (f"tokens in {paths[train]}", len(ids[train]), train_tokens),
        (f"tokens in {paths[test]}", len(ids[test]), test_tokens),
    ):
        if found != wanted:
            raise ValueError(f"there are {found} {what}, not {wanted}: it is not the whole text, or another one")
    return Text(
        ids[train],
        ids[test],
        num_classes=num_classes,
        rows=rows,
        length=length,
        roll=roll,
        test_rows=test_rows,
        test_length=test_length,
        test_warmup=test_warmup,
        train_subset=train_subset,
        digest=digest,
    )


def split_path(root: str, folder: str, split: str) -> Path:
    """The file of a split, by either of its names; FileNotFoundError when there is none."""
    names = (f"{split}.txt", f"wiki.{split}.tokens")
    for name in names:
        if (path := Path(root, folder, name)).is_file():
            return path
    raise absent(Path(root, folder, names[0]), root, f"put {names[1]} of {folder}'s archive there by either name")
