"""The records of all architectures that the tables and figures use: results/architectures, one JSON file each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from models.account import account

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "architectures"


def wanted() -> list[dict[str, Any]]:
    """What is to be counted, as the tables' side says: {model, in_shape, num_classes, file} each.

    From a process of its own, since models know nothing of tables. ValueError with its sentence when it fails.
    """
    asked = [sys.executable, "-m", "results.architecture"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no cell could be composed")
    return [json.loads(line) for line in done.stdout.splitlines()]


def record(asked: Mapping[str, Any]) -> str:
    """The text of one record: what was asked, the stages, the account; a line per field and per layer."""
    import torch

    from models.report import build
    from models.stages import stages

    built = asked["model"], asked["in_shape"], asked["num_classes"]
    with torch.device("meta"):  # shapes only: no memory, no time
        model = build(*built)
    content = {"model": asked["model"], "num_classes": asked["num_classes"]}
    if told := stages(*built):
        content["stages"] = told
    return _text({**content, **account(model, asked["in_shape"]).record()})


def _text(content: Mapping[str, Any]) -> str:
    lines = []
    for name, value in content.items():
        text = json.dumps(value, ensure_ascii=False)
        if name == "layers":
            text = "[\n" + ",\n".join(f"  {json.dumps(layer)}" for layer in value) + "\n]"
        lines.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(every: Iterable[Mapping[str, Any]], folder: Path = FOLDER) -> tuple[list[str], list[str]]:
    """Write the records, and remove those that nobody asks for: (names of files that changed, names that went)."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {asked["file"]: record(asked) for asked in every}
    gone = [path for path in sorted(folder.glob("*.json")) if path.name not in texts]
    changed = [name for name, text in texts.items() if not _holds(folder / name, text)]
    for name in changed:
        (folder / name).write_text(texts[name], encoding="utf-8")
    for path in gone:
        path.unlink()
    return changed, [path.name for path in gone]


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text
