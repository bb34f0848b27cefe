"""What has been composed is kept across processes, and is never believed when anything that makes it has changed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from results.address import select
from results.plan import runnable
from runner import cache, compositions
from runner import compose as composing
from runner.compose import CONF, Composition, compose, identify, remembered
from runner.errors import Misuse

ROOT = CONF.parent
SETS = [[], ["method=set", "method.sparsity=0.95"], ["experiment=dsr/lenet_mnist", "method=compressed"]]
CODE = """
import json, sys
from runner.compose import identify, remembered
found = []
with remembered():
    for overrides in json.loads(sys.argv[1]):
        try:
            composition = identify(overrides)
            found.append([composition.key, list(composition.ancestors), composition.config])
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
loaded = {name.split(".")[0] for name in sys.modules} & {"hydra", "omegaconf", "yaml", "torch"}
print(json.dumps([found, sorted(loaded)]))
"""


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("REGROW_CACHE", str(path))
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what composes, to be changed."""
    path = tmp_path / "checkout"
    for name in ("conf", "runner", "methods", "data"):  # data: the cache folder
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return path


def other_process(checkout: Path, sets: Sequence[Sequence[str]] = SETS, **environment: str) -> tuple[list[Any], bool]:
    """(what each set of overrides composes to, whether all of it was known) in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(sets)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found, loaded = json.loads(done.stdout)
    assert loaded in ([], ["hydra", "omegaconf", "yaml"])
    return found, not loaded


def test_another_process_knows_what_one_composed_and_needs_no_hydra(checkout: Path) -> None:
    fresh, known = other_process(checkout)
    assert not known
    assert other_process(checkout) == (fresh, True)
    assert [entry[2] for entry in fresh] == [compose(overrides) for overrides in SETS]
    assert other_process(checkout, [*SETS, ["method=dsr"]])[1] is False
    assert other_process(checkout, [*SETS, ["method=dsr"]])[1] is True


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_changed_configuration_is_composed_anew(checkout: Path, cache_folder: Path) -> None:
    first, _ = other_process(checkout)
    change(checkout / "conf/method/set.yaml", "count: 600", "count: 601")
    second, known = other_process(checkout)
    assert not known and second[1][2]["method"]["count"] == 601 and second[1][0] != first[1][0]
    assert len(list(cache_folder.iterdir())) == 1, "what no longer fits is removed"
    change(checkout / "conf/method/set.yaml", "count: 601", "count: 600")
    assert other_process(checkout)[0] == first


def test_a_new_file_is_found(checkout: Path) -> None:
    overrides = [["experiment=dsr/wrn_cifar10", "method=gmp"], ["method=new"]]
    (before, mistake), _ = other_process(checkout, overrides)
    assert mistake.startswith("Misuse: there is no method 'new'.")
    (checkout / "conf/experiment/dsr/wrn_cifar10/gmp.yaml").write_text(
        "# @package _global_\nmethod: {iterations: 99}\n"
    )
    shutil.copy(checkout / "conf/method/set.yaml", checkout / "conf/method/new.yaml")
    (after, found), _ = other_process(checkout, overrides)
    assert before[2]["method"]["iterations"] != after[2]["method"]["iterations"] == 99
    assert found[2]["method"]["name"] == "set"


@pytest.mark.parametrize("file", ["runner/compose.py", "runner/identity.py", "methods/schedules.py"])
def test_changed_code_composes_anew(checkout: Path, file: str) -> None:
    other_process(checkout)
    with (checkout / file).open("a") as source:
        source.write("\n")
    assert other_process(checkout)[1] is False


def test_changed_identity_is_no_old_key(checkout: Path) -> None:
    first, _ = other_process(checkout)
    change(checkout / "runner/identity.py", "[:12]", "[:11]")
    assert [entry[0] for entry in other_process(checkout)[0]] == [entry[0][:11] for entry in first]


def test_the_environment_is_part_of_it(checkout: Path, cache_folder: Path) -> None:
    for number in range(12):
        (entry,), known = other_process(checkout, [[]], REGROW_RUNS=f"/runs{number}")
        assert entry[2]["runs"] == f"/runs{number}" and not known
    assert len(list(cache_folder.iterdir())) == 8
    assert other_process(checkout, [[]], REGROW_RUNS="/runs11")[1] is True
    assert other_process(checkout, [[]], REGROW_RUNS="/runs0")[1] is False


def test_two_checkouts_do_not_disturb_each_other(checkout: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(checkout, tmp_path / "other"))
    change(other / "conf/method/set.yaml", "count: 600", "count: 601")
    for _ in range(2):
        entries = [other_process(path) for path in (checkout, other)]
    assert [known for _, known in entries] == [True, True]
    assert [found[1][2]["method"]["count"] for found, _ in entries] == [600, 601]


def test_a_configuration_that_reads_anything_else_is_not_kept(checkout: Path, cache_folder: Path) -> None:
    change(checkout / "conf/config.yaml", "seed: 0", "seed: 0\nwhen: ${oc.env:${seed}}")
    other_process(checkout)
    assert not cache_folder.exists()


@pytest.mark.parametrize("damage", [b"", b"regrow cache 1 00000000 2\n[]", b"x" * 10])
def test_a_damaged_file_is_composed_anew(checkout: Path, cache_folder: Path, damage: bytes) -> None:
    fresh, _ = other_process(checkout)
    (file,) = cache_folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage)
    assert other_process(checkout) == (fresh, False)
    assert file.read_bytes() == content


def test_without_a_cache_folder_everything_is_composed(checkout: Path, cache_folder: Path) -> None:
    cache_folder.write_text("a file")
    fresh, known = other_process(checkout)
    assert other_process(checkout) == (fresh, False) and not known
    assert other_process(checkout, REGROW_CACHE="") == (fresh, False)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(composing, "_composed", {})


def facts(composition: Composition) -> str:
    return repr((composition.key, composition.ancestors, composition.config))


def test_every_cell_of_every_table_is_kept_as_it_was_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = [slot for selection in select() for slot in selection.table.slots() if runnable(slot)]
    sets = {(*slot.overrides, *more) for slot in slots for more in ([], ["profile=short"])}
    assert len(sets) > 50
    with remembered():
        fresh = {overrides: facts(identify(overrides)) for overrides in sets}
    forget(monkeypatch)
    monkeypatch.setattr(composing, "_compose", lambda overrides: pytest.fail(f"{overrides} is composed again"))
    with remembered():
        assert {overrides: facts(identify(overrides)) for overrides in sets} == fresh


def test_a_kept_composition_is_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with remembered():
        compose(["method=set"])
    forget(monkeypatch)
    with remembered():
        compose(["method=set"])["method"]["keep_dense"].append("changed")
        assert compose(["method=set"])["method"]["keep_dense"] == []


def test_what_is_new_is_written_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = cache.write

    def writing(name: str, lines: Sequence[bytes]) -> bool:
        written.append(name)
        return write(name, lines)

    monkeypatch.setattr(cache, "write", writing)
    forget(monkeypatch)
    with remembered():
        for count in range(5):
            compose([f"schedule.epochs={50 + count}"])
            with remembered():  # a command within a command
                compose([f"schedule.epochs={60 + count}"])
            assert written == []
    assert len(written) == 1
    forget(monkeypatch)
    with remembered():
        compose(["schedule.epochs=50"])
    compose(["schedule.epochs=70"])
    assert len(written) == 1


def test_mistakes_are_not_kept(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    forget(monkeypatch)
    with remembered():
        for _ in range(2):
            with pytest.raises(Misuse):
                compose(["method=dsrr"])
    assert not cache_folder.exists()
    with pytest.raises(Misuse), remembered():  # what was found before a mistake is kept
        compose(["method=dsr"])
        compose(["method=dsrr"])
    assert len(list(cache_folder.iterdir())) == 1


def test_runs_are_not_kept_one_by_one_nor_what_reads_something(
    monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    forget(monkeypatch)
    with remembered():
        assert compose(["method=set", "seed=3"])["seed"] == 3
        assert compose(["runs=${oc.env:HOME}"])["runs"] == os.environ["HOME"]
        assert compose(["schedule.gamma=inf"])["schedule"]["gamma"] == float("inf")
    assert not cache_folder.exists()


def test_a_changed_environment_within_a_command_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with remembered():
        for name in ("/a", "/b"):
            monkeypatch.setenv("REGROW_RUNS", name)
            assert compose([])["runs"] == name
    monkeypatch.delenv("REGROW_RUNS")
    forget(monkeypatch)
    with remembered():
        assert compose([])["runs"] == "runs"


def test_the_variables_that_are_read_are_found(tmp_path: Path) -> None:
    assert compositions.variables(CONF) == ("REGROW_DATA", "REGROW_RUNS")
    for number, (text, expected) in enumerate(
        {
            "a: ${oc.env:A}": ("A",),
            "a: ${ oc.env : A , x} ${oc.env:B}": ("A", "B"),
            "a: ${b}": (),
            "a: ${oc.decode:${oc.env:A}}": ("A",),
            "a: ${oc.env:${b}}": None,
            "a: ${now:%Y}": None,
            "a: ${hydra:runtime.cwd}": None,
        }.items()
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.yaml").write_text(text)
        assert compositions.variables(folder) == expected, text
