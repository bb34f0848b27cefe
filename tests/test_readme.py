"""The manuals' commands run as written, what they show is what the commands give, and their links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from results import status

ROOT = Path(__file__).resolve().parent.parent
# In the order in which a newcomer reads them.
MANUALS = {name: (ROOT / name).read_text() for name in ("README.md", "runner/README.md", "results/README.md")}
# What git keeps out of the repository lies in folders that begin with a dot or are named here.
OUTPUT = {"runs", "out", "datasets", "outputs", "multirun", "wandb", "build", "dist"}


def documents() -> dict[str, str]:
    """Every Markdown file of the repository by its path."""
    found = {}
    for folder, folders, files in os.walk(ROOT):
        if Path(folder) == ROOT:
            folders[:] = [name for name in folders if name not in OUTPUT and not name.startswith(".")]
        paths = [Path(folder, name) for name in files if name.endswith(".md")]
        found |= {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    return dict(sorted(found.items()))


DOCUMENTS = documents()


def lines_of(text: str, language: str) -> list[str]:
    """The lines of a manual's blocks in a language, without their comments."""
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    lines = (line.split("  #")[0].strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


COMMANDS = [(name, command) for name, text in MANUALS.items() for command in lines_of(text, "bash")]
PYTHON = [(name, command) for name, command in COMMANDS if command.startswith("python ")]
SAID: dict[str, str] = {}  # command -> what it printed


def test_every_command_is_a_make_target_or_a_python_command() -> None:
    assert sum(name == "README.md" for name, _ in PYTHON) >= 20 and {name for name, _ in PYTHON} == set(MANUALS)
    for name, command in set(COMMANDS) - set(PYTHON):
        words = command.split()
        assert words[0] == "make" and set(words[1:]) <= targets(), (name, command)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_command_stands_where_a_test_runs_it() -> None:
    """A document with commands is one of these, or the guide, which tests/test_packages.py runs.

    A command within a sentence stands in a block, too: in `bash`, which runs, or in `text`, what cannot run here. One
    with a word in capitals (RUN, ADDRESS) or with dots at its end is a pattern.
    """
    assert {name for name, text in DOCUMENTS.items() if "```bash" in text} == {*MANUALS, "CONTRIBUTING.md"}
    blocks = [line for text in MANUALS.values() for line in lines_of(text, "bash") + lines_of(text, "text")]
    inline = 0
    for name, text in MANUALS.items():
        for span in re.findall(r"`([^`]+)`", prose(text)):
            command = " ".join(span.split())
            if command.startswith("make "):
                assert {word for word in command.split()[1:] if "=" not in word} <= targets(), (name, command)
            elif command.startswith("python ") and not re.search(r"\b[A-Z]+\b| \.\.\.$", command):
                assert any(f"{line} ".startswith(f"{command} ") for line in blocks), (name, command)
                inline += 1
    assert inline >= 2


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One runs root for all commands, as a newcomer who types them one after the other has."""
    folder = tmp_path_factory.mktemp("readme")
    return {"REGROW_RUNS": str(folder / "runs"), "PYTHONPATH": str(ROOT), "folder": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize(("manual", "command"), PYTHON)
def test_the_command_runs_as_written(manual: str, command: str, places: dict[str, str]) -> None:
    words = shlex.split(command)
    if "--out" in words:  # the clone stays clean
        words[words.index("--out") + 1] = f"{places['folder']}/{words[words.index('--out') + 1]}"
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, env=os.environ | places, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    SAID[command] = done.stdout


# What the commands give is what is shown. These follow the commands.


@pytest.mark.slow
def test_a_command_prints_the_table_below_it() -> None:
    compared = 0
    for name, command, shown in following(r"(?:^\|.*\n)+"):
        assert [line for line in SAID[command].splitlines() if line.startswith("|")][: len(shown)] == shown, (
            name,
            command,
        )
        compared += 1
    assert compared == 10


def following(pattern: str) -> list[tuple[str, str, list[str]]]:
    """(manual, the only command of a block, the lines of what follows it)."""
    found = []
    for name, text in MANUALS.items():
        for match in re.finditer(rf"^```bash\n(python .*)\n```\n\n({pattern})", text, re.MULTILINE):
            found.append((name, match[1].split("  #")[0].strip(), match[2].splitlines()))
    return found


@pytest.mark.slow
def test_the_demo_ends_with_the_table_shown() -> None:
    """Rows and columns are the same; a mean lies within a standard deviation: processors round differently."""
    made = [line for line in SAID["python scripts/make_tables.py demo/digits"].splitlines() if line.startswith("|")]
    shown = re.search(r"ends with this table(?:.*\n)+?\n((?:\|.*\n)+)", MANUALS["README.md"])
    assert shown is not None
    lines = shown[1].splitlines()
    assert len(made) == len(lines) == 8 and made[:2] == lines[:2]
    for one, other in zip(made[2:], lines[2:], strict=True):
        assert one.split("|")[1] == other.split("|")[1]
        for here, there in zip(numbers(one), numbers(other), strict=True):
            assert abs(here[0] - there[0]) <= max(here[1], there[1]), (one, other)


def numbers(row: str) -> list[tuple[float, float]]:
    return [(float(mean), float(std)) for mean, std in re.findall(r"([\d.]+) ± ([\d.]+)", row)]


def pictures() -> list[str]:
    found = {Path(path).name for text in MANUALS.values() for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)}
    return sorted(found)


def test_every_committed_picture_is_shown() -> None:
    assert pictures() == sorted(path.name for path in (ROOT / "results" / "shown").glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("name", pictures())
def test_a_command_draws_the_picture_shown(name: str, places: dict[str, str]) -> None:
    (made,) = Path(places["folder"], "out").rglob(name)
    if not name.startswith("demo_"):  # of the committed records, so that no processor has a say
        with Image.open(made) as one, Image.open(ROOT / "results" / "shown" / name) as other:
            assert one.size == other.size
            apart = np.asarray(one.convert("L"), float) - np.asarray(other.convert("L"), float)
        assert np.sqrt(np.mean(apart**2)) < 2, f"draw it anew, into results/shown: {name}"


# Links


def anchors(text: str) -> set[str]:
    """What `#...` may name, as GitHub spells it: headings in lower case, without punctuation, spaces as hyphens."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?) *$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        again = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.add(f"{slug}-{again}" if again else slug)
    return found


def links(text: str) -> list[str]:
    """The targets of links and pictures, those outside of the repository left out."""
    found = re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`]+`", "", prose(text)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    for target in links(DOCUMENTS[name]):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name}: {target}"
        if anchor:
            text = DOCUMENTS[file.resolve().relative_to(ROOT).as_posix()]
            assert anchor in anchors(text), f"{name}: {target}"


def test_links_are_found() -> None:
    assert sum(len(links(text)) for text in MANUALS.values()) > 60
    assert links("see [a](b.md#c), ![d](e/f.png), [`g`](#h) and <https://x.y>, [i](https://j.k), `[l](m)`") == [
        "b.md#c",
        "e/f.png",
        "#h",
    ]
    assert anchors("# A `b/c_d`, e's & f\n\n```bash\n# no heading\n```\n## G\n## G\n") == {"a-bc_d-es--f", "g", "g-1"}


def test_every_manual_is_linked_from_the_readme() -> None:
    linked = {target.partition("#")[0] for target in links(DOCUMENTS["README.md"])}
    assert {*MANUALS, "CONTRIBUTING.md", "CHANGELOG.md", "results/papers/README.md"} - {"README.md"} <= linked


FOLDERS = "conf|runner|methods|models|data|scripts|results|tests"


@pytest.mark.parametrize("name", MANUALS)
def test_files_that_a_manual_names_exist(name: str) -> None:
    named = re.findall(rf"(?<![\w/])((?:{FOLDERS})/[\w./]*\w)", MANUALS[name])
    assert len(named) > 3
    for path in named:
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
        (["dpf/narrow_precision", "--profile", "short"], "dpf_narrow_precision.short", 4),
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
def test_a_table_in_a_manual_is_the_committed_one(asked: list[str], shown: str, rows: int) -> None:
    """Those printed in results/README.md are the committed ones, which `test_every_committed_table...` makes anew."""
    profile = f".{asked[2]}" if asked[1:] else ""
    assert shown == asked[0].replace("/", "_") + profile
    lines = [line for line in (ROOT / f"results/shown/{shown}.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == rows
    assert "\n".join(["", *lines, ""]) in MANUALS["results/README.md"]
