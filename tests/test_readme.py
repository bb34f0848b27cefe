"""The README's commands run as written, and what it shows is what the commands give."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from results import status

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
PYTHON = [command for command in COMMANDS if command.startswith("python ")]


def test_every_command_is_a_make_target_or_a_python_command() -> None:
    assert len(PYTHON) >= 8
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in set(COMMANDS) - set(PYTHON):
        words = command.split()
        assert words[0] == "make" and set(words[1:]) <= set(targets), command


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One runs root for all commands, as a newcomer who types them one after the other has."""
    folder = tmp_path_factory.mktemp("readme")
    return {"REGROW_RUNS": str(folder / "runs"), "PYTHONPATH": str(ROOT), "folder": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("command", PYTHON)
def test_the_command_runs_as_written(command: str, places: dict[str, str]) -> None:
    words = shlex.split(command)
    if "--out" in words:  # the clone stays clean
        words[words.index("--out") + 1] = f"{places['folder']}/{words[words.index('--out') + 1]}"
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, env=os.environ | places, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_pictures_and_files_that_it_names_exist() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_files_that_the_guide_for_contributors_names_exist() -> None:
    named = re.findall(r"`((?:\w+/)+[\w.]*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 30
    for path in named:
        assert (ROOT / path).exists(), path


def test_every_committed_table_is_made_from_the_records(tmp_path: Path) -> None:
    """Byte for byte, its profile in its name. (The theorem's has a test of its own.)"""
    assert status.main(["--out", str(tmp_path)]) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in (ROOT / "results" / "shown").glob("*.md")}
    assert set(kept) == {*made, "theorem.md"} and len(made) > 10
    assert made == {name: content for name, content in kept.items() if name != "theorem.md"}


@pytest.mark.parametrize(
    ("asked", "shown", "rows"),
    [
        (["dsr/lenet_mnist"], "dsr_lenet_mnist", 8),
        (["dpf/narrow", "--profile", "short"], "dpf_narrow.short", 8),
        (["acdc/narrow", "--profile", "short"], "acdc_narrow.short", 4),
        (["lats/narrow", "--profile", "short"], "lats_narrow.short", 5),
        (["lats/sew_narrow", "--profile", "short"], "lats_sew_narrow.short", 6),
        (["iterand/reviews", "--profile", "short_text"], "iterand_reviews.short_text", 5),
        (["iterand/narrow", "--profile", "short"], "iterand_narrow.short", 7),
        (["iterand/narrow_gain", "--profile", "short"], "iterand_narrow_gain.short", 7),
        (["lats/lenet_mnist_equal"], "lats_lenet_mnist_equal", 7),
        (["demo/wikitext2"], "demo_wikitext2", 5),
    ],
)
def test_a_table_in_the_readme_is_the_committed_one(asked: list[str], shown: str, rows: int) -> None:
    """Those printed in the README are the committed ones, which `test_every_committed_table...` makes anew."""
    profile = f".{asked[2]}" if asked[1:] else ""
    assert shown == asked[0].replace("/", "_") + profile
    lines = [line for line in (ROOT / f"results/shown/{shown}.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == rows
    for line in lines:
        assert line in README
