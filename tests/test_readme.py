"""The README's commands run as written, and what it shows is what the commands give."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("asked", "shown", "rows"),
    [
        (["dsr/lenet_mnist"], "dsr_lenet_mnist", 8),
        (["dpf/narrow", "--profile", "short"], "dpf_narrow.short", 8),
        (["acdc/narrow", "--profile", "short"], "acdc_narrow.short", 4),
        (["lats/narrow", "--profile", "short"], "lats_narrow.short", 5),
        (["lats/sew_narrow", "--profile", "short"], "lats_sew_narrow.short", 6),
        (["iterand/reviews", "--profile", "short_text"], "iterand_reviews.short_text", 5),
        (["lats/lenet_mnist_equal"], "lats_lenet_mnist_equal", 7),
        (["demo/wikitext2"], "demo_wikitext2", 5),
    ],
)
def test_a_measured_table_is_the_one_its_records_give(asked: list[str], shown: str, rows: int) -> None:
    """The tables printed in the README are regenerated, not written by hand."""
    done = subprocess.run(
        [sys.executable, "scripts/make_tables.py", *asked, "--runs", "results/logged"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == rows
    for line in lines:
        assert line in README
    assert done.stdout == (ROOT / f"results/shown/{shown}.md").read_text()
