"""Planted faults (tests/mutations): each still applies, and each is caught by the tests that it names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "mutations"


@dataclass(frozen=True)
class Mutation:
    """One fault: where `old` stands in `file`, `new` is written; every test of `caught_by` must then fail."""

    name: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


def read_catalog() -> list[Mutation]:
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        sheet = yaml.safe_load(path.read_text())
        for name, entry in sheet["mutations"].items():
            old, new = entry["old"].rstrip("\n"), entry["new"].rstrip("\n")
            found.append(Mutation(f"{path.stem}: {name}", sheet["file"], old, new, tuple(entry["caught_by"])))
    return found


CATALOG = read_catalog()


def test_names_are_unique_and_no_method_is_without_faults() -> None:
    assert len({mutation.name for mutation in CATALOG}) == len(CATALOG)
    methods = {f"methods/{path.name}" for path in (ROOT / "methods").glob("*.py")} - {"methods/__init__.py"}
    assert methods <= {mutation.file for mutation in CATALOG}


@pytest.mark.parametrize("mutation", CATALOG, ids=str)
def test_the_fault_still_applies(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    assert text.count(mutation.old) == 1, f"{mutation.old!r} should occur exactly once in {mutation.file}"
    assert mutation.new != mutation.old
    compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")
    assert mutation.caught_by
    for test in mutation.caught_by:
        file, function = re.fullmatch(r"(test_\w+\.py)::(test_\w+)(?:\[.+\])?", test).groups()  # type: ignore[union-attr]
        assert f"\ndef {function}(" in (ROOT / "tests" / file).read_text(), test


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of every selected trial, and of all their tests without a fault."""
    chosen = [
        item.callspec.params["mutation"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_the_fault_is_caught"
    ]
    tree = tmp_path_factory.mktemp("tree")
    for name in ("conf", "data", "methods", "models", "results", "runner", "scripts", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "mutations"))
    for name in ("pyproject.toml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tree)
    every = sorted({test for mutation in chosen for test in mutation.caught_by})
    trials: dict[str, Any] = {"none": ("pyproject.toml", "[project]", "[project]", every)}
    trials |= {m.name: (m.file, m.old, m.new, m.caught_by) for m in chosen}
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "trial.py"), str(tree)],
        input=json.dumps(trials),
        env=environment,
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", CATALOG, ids=str)
def test_the_fault_is_caught(mutation: Mutation, outcomes: dict[str, Any]) -> None:
    sound, outcome = outcomes["none"], outcomes[mutation.name]
    assert sound["code"] == 0 and sound["ran"] and not sound["failed"], sound
    assert outcome["code"] == 1, outcome  # tests failed: not a collection error, not a hang
    for test in mutation.caught_by:
        node = f"tests/{test}"
        assert any(name == node or name.startswith(f"{node}[") for name in outcome["failed"]), test
