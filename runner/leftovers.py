"""What finished and broken runs leave behind that nothing needs any more. Records are never among it. No torch here."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.errors import Misuse
from runner.identity import Config, key, parent_config
from runner.records import RunDirectory, is_held

SETTLED = ("completed", "diverged")
_RUN = re.compile(r"seed\d+")
_KEY = re.compile(r"[0-9a-f]{12}")
# Of runner.disk.staged, runner.checkpoint and runner.lock.
_TEMPORARY = re.compile(r"\.\w+\.(json|jsonl|yaml|pt)\.\d+(\.[0-9a-f]{8})?|\.lock\.[0-9a-f]{16}")
_NOTHING = ("lock", "log.txt", "checkpoints")  # what a run directory may hold before its run has begun


@dataclass(frozen=True)
class Leftover:
    """A file, or a whole empty run directory, that can be deleted. `size` in bytes."""

    path: Path
    run: Path
    size: int
    why: str


def wanted(stages: Iterable[Config], finished: Container[tuple[str, int]]) -> set[tuple[str, int]]:
    """(key, seed) of every run whose weights a stage among these configurations still has to start from."""
    found: set[tuple[str, int]] = set()
    for config in stages:
        stage: Config | None = config
        while stage is not None and (key(stage), stage["seed"]) not in finished:
            stage = parent_config(stage)
            if stage is not None:
                found.add((key(stage), stage["seed"]))
    return found


def run_directories(roots: Iterable[Path]) -> Iterator[Path]:
    """Every directory seed<k> below the roots, each once."""
    seen = set()
    for root in roots:
        for folder, subfolders, _ in os.walk(root):
            subfolders.sort()
            if _RUN.fullmatch(Path(folder).name):
                subfolders.clear()
                if (real := Path(folder).resolve()) not in seen:
                    seen.add(real)
                    yield Path(folder)


def leftovers(path: Path, needed: Container[tuple[str, int]] | None, older_than_s: float = 0.0) -> list[Leftover]:
    """What can be deleted of one run directory; nothing while it is held, or where anything in it is younger.

    `needed`: the runs whose checkpoints must stay; None keeps all. Misuse when the summary cannot be read.
    """
    return [] if is_held(path) else _look(path, needed, older_than_s)


def _look(path: Path, needed: Container[tuple[str, int]] | None, older_than_s: float) -> list[Leftover]:
    files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    newest = max((file.stat().st_mtime for file in files), default=path.stat().st_mtime)
    if time.time() - newest < older_than_s:
        return []
    if _is_empty(path, files):
        return [Leftover(path, path, sum(file.stat().st_size for file in files), "nothing was run in it")]
    reasons = {file: "a write that was cut off" for file in files if _TEMPORARY.fullmatch(file.name)}
    summary = RunDirectory(path).summary() or {}
    identity = str(summary.get("key")), summary.get("seed")
    # Nothing behind a link to another folder is ours to delete.
    if summary.get("status") in SETTLED and not (path / "checkpoints").is_symlink():
        for file in sorted((path / "checkpoints").glob("*.pt")):
            if file.name == "previous.pt":
                reasons[file] = "the checkpoint before the last one of a finished run"
            elif needed is not None and type(identity[1]) is int and identity not in needed:
                reasons[file] = "no stage is still to start from it"
    return [Leftover(file, path, file.stat().st_size, why) for file, why in sorted(reasons.items())]


def _is_empty(path: Path, files: Iterable[Path]) -> bool:
    """No configuration, metrics, checkpoint or log: the run was stopped before it began."""
    inside = all(entry.name in _NOTHING or _TEMPORARY.fullmatch(entry.name) for entry in path.iterdir())
    # A lock names who held it last.
    return inside and all(
        _TEMPORARY.fullmatch(file.name) or file.name == "lock" or file.stat().st_size == 0 for file in files
    )


def delete(found: Iterable[Leftover], needed: Container[tuple[str, int]] | None, older_than_s: float = 0.0) -> int:
    """Delete leftovers and return how many bytes that frees.

    Each run directory is held and looked at once more before: what is held, needed or gone by now is left out.
    Misuse when something cannot be deleted.
    """
    freed = 0
    paths = {leftover.path for leftover in found}
    for run in dict.fromkeys(leftover.run for leftover in found):
        if not run.is_dir() or is_held(run):
            continue
        try:
            with RunDirectory(run).held():
                for leftover in _look(run, needed, older_than_s):
                    if leftover.path in paths:
                        _remove(leftover)
                        freed += leftover.size
        except OSError as error:
            raise Misuse(f"{error.filename} cannot be deleted ({error.strerror}); what comes after it stays.") from None
    return freed


def _remove(leftover: Leftover) -> None:
    folder = leftover.path.parent
    if leftover.path == leftover.run:
        shutil.rmtree(leftover.run)
        if _KEY.fullmatch(folder.name) and not any(folder.iterdir()):
            folder.rmdir()
        return
    leftover.path.unlink(missing_ok=True)
    if folder.name == "checkpoints" and not any(folder.iterdir()):
        folder.rmdir()
