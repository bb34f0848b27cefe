"""A miniature text in WikiText's form, and a tiny language model on it, for the tests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

WORDS = ("the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "log", "red", "<unk>")

# Three epochs of 11 steps: four streams of 88 tokens in segments of 8.
TINY = (
    "dataset=wikitext2_valid_test",
    "dataset.digest=null",
    "dataset.num_classes=13",
    "dataset.train_tokens=352",
    "dataset.test_tokens=97",
    "dataset.length=8",
    "dataset.test_rows=3",
    "dataset.test_length=5",
    "dataset.test_warmup=10",
    "task=language_modelling",
    "model=transformer_xl_small",
    "model.layers=2",
    "model.width=16",
    "model.heads=2",
    "model.head_width=8",
    "model.inner=24",
    "model.memory=8",
    "model.test_memory=10",
    "model.cutoffs=[6]",
    "model.divisor=2",
    "schedule=lamb",
    "schedule.batch_size=4",
    "schedule.lr=0.1",
    "schedule.lr=0.1",
    "schedule.epochs=3",
    "schedule.warmup_epochs=0.5",
)


def sentences(count: int, seed: int) -> list[list[str]]:
    """Sentences that are partly predictable: a word tends to follow its neighbour in the list."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        at = rng.randrange(len(WORDS))
        line = []
        for _ in range(7):
            line.append(WORDS[at])
            at = (at + 1) % len(WORDS) if rng.random() < 0.8 else rng.randrange(len(WORDS))
        found.append(line)
    return found


def write(root: Path) -> Path:
    """The root, with 352 training tokens (44 lines of 7 words and an <eos>) in valid.txt and 97 in test.txt."""
    folder = root / "wikitext-2"
    folder.mkdir(parents=True)
    (folder / "valid.txt").write_text("".join(f" {' '.join(line)} \n" for line in sentences(44, 0)))
    lines = "".join(f" {' '.join(line)} \n" for line in sentences(12, 1))
    (folder / "test.txt").write_text(lines + "\n")  # an empty line is an <eos>
    return root


def overrides(root: Path, *more: str) -> list[str]:
    return [*TINY, f"data.root={root}", *more]


def token_ids(lines: list[list[str]], known: dict[str, int]) -> list[int]:
    """By hand: every word's number, and 0 after each line."""
    return [number for line in lines for number in [*(known[word] for word in line), 0]]


def everything(state: Any) -> dict[str, Any]:
    """Nested mappings and lists, by the path to each leaf."""
    if isinstance(state, list | tuple):
        state = dict(enumerate(state))
    if not isinstance(state, dict):
        return {"": state}
    return {f"/{name}{path}": leaf for name, part in state.items() for path, leaf in everything(part).items()}
