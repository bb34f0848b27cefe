"""Packages of one's own (REGROW_PACKAGES): the guide runs as printed, mistakes get a sentence, reading imports none."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from results import architecture
from results.address import figures, select, tables
from results.fill import footnotes, titled
from results.record import remarks_on
from runner import packages
from runner.__main__ import main
from runner.attempt import attempt
from runner.build import check
from runner.cluster import Slurm, cluster
from runner.compose import CONF, compose, groups, identify, names, remembered
from runner.environment import describe, extensions
from runner.errors import Misuse
from runner.experiment import validate
from runner.hydra_groups import resolve, resolve_by_omegaconf, search_path
from runner.slurm import array_script
from runner.submission import Task, freeze, load
from scripts import calibrate, make_figures, make_tables, runs, submit

ROOT = CONF.parent
GUIDE = re.search(r"\n## A package of your own\n(.*?)\n## ", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
assert GUIDE is not None
FILES = dict(re.findall(r"```\w+\n# (mylab/[\w./]+)\n(.*?)```", GUIDE[1], re.DOTALL))
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", GUIDE[1], re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
PYTHON = COMMANDS[1:]
SLOW = [command for command in PYTHON if "slow or ddp" in command]
METHOD = "name: mine\nrevision: 1\n_target_: {package}.code.Mine\nkeep_dense: []\n"
CODE = """
from os.path import join
from methods.base import Method

class Mine(Method):
    pass

def by_position(x):
    pass
"""
TABLE = """
title: Own
metric: test/accuracy
direction: up
unit: "%"
seeds: [0]
overrides: [experiment=demo/digits]
rows: [{id: mine, title: Mine, overrides: [method=mine]}]
columns: [{id: one, title: One}]
"""

Make = Callable[..., Path]


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def environment(folder: Path, allowed: str = "mylab") -> dict[str, str]:
    path = os.pathsep.join((str(ROOT), str(folder)))
    own = {"PYTHONPATH": path, "REGROW_RUNS": str(folder / "runs"), packages.VARIABLE: allowed}
    return {**os.environ, **own, "OMP_NUM_THREADS": "1"}


def call(folder: Path, *words: str, allowed: str = "mylab") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment(folder, allowed), capture_output=True, text=True, timeout=550
    )


def forget(*listed: str) -> None:
    """As if these packages had never been imported."""
    for name in [name for name in sys.modules if name.split(".")[0] in listed]:
        del sys.modules[name]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """make("a", {file: text}, "b", {...}): packages in a folder that Python knows, all of them allowed."""

    def made(*given: Any, allowed: str | None = None) -> Path:
        every = dict(zip(given[::2], given[1::2], strict=True))
        for package, files in every.items():
            write(tmp_path / package, {"__init__.py": "raise RuntimeError('this is imported')\n", **files})
        monkeypatch.setenv(packages.VARIABLE, ",".join(every) if allowed is None else allowed)
        monkeypatch.syspath_prepend(tmp_path)
        listed.extend(every)
        return tmp_path

    listed: list[str] = []
    yield made
    forget(*listed)


# The guide


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guide's package, and the runs of its commands."""
    folder = tmp_path_factory.mktemp("guide")
    write(folder, {"mylab/__init__.py": "", **FILES})
    return folder


def test_the_guide_shows_a_method_of_about_twenty_lines_with_all_that_belongs_to_it() -> None:
    assert COMMANDS[0] == f"export {packages.VARIABLE}=mylab"
    assert {name.rsplit("/", 1)[0] for name in FILES} == {"mylab", "mylab/papers/mylab"} | {
        f"mylab/conf/{group}" for group in ("method", "model", "dataset")
    }
    assert len([line for line in FILES["mylab/saliency.py"].splitlines() if line.strip()]) <= 20
    assert len(SLOW) == 1 and len(PYTHON) == 6


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else [], id=c[7:50]) for c in PYTHON]
)
def test_a_command_of_the_guide_runs_as_printed(command: str, guide: Path) -> None:
    words = shlex.split(command)
    assert words.pop(0) == "python"
    nested = ["-p", "no:cacheprovider"] if "pytest" in words else []
    done = call(guide, *words, *nested)
    assert done.returncode == 0, done.stdout + done.stderr
    if nested:
        assert re.search(r"\b\d\d passed", done.stdout) and "skipped" not in done.stdout
    if "scripts/make_tables.py" in words:
        assert "| Saliency |" in done.stdout
    if "--dry-run" in words:
        assert "12" in done.stdout


def test_its_files_are_formatted_and_typed_as_ours(guide: Path) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml"), str(guide / "mylab")]
    if subprocess.run([*ruff, "--version"], capture_output=True).returncode:
        pytest.skip("ruff is not installed")
    assert subprocess.run([*ruff, "format", "--check", *config]).returncode == 0
    assert subprocess.run([*ruff, "check", "--ignore", "D104", *config]).returncode == 0


def test_what_a_reader_of_runs_asks_imports_no_package(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"conf/method/mine.yaml": METHOD.format(package="mine"), "papers/own/one.yaml": TABLE}
    monkeypatch.chdir(make("mine", {"code.py": CODE, **own}))
    assert make_tables.main(["own"]) == submit.main(["own", "--dry-run"]) == runs.main(["list"]) == 0
    assert main(["method=mine", "--cfg"]) == main(["--help"]) == 0
    assert "mine" not in sys.modules
    assert main(["method=mine"]) == 2 and "RuntimeError: this is imported." in capsys.readouterr().err


# Choices and tables


@pytest.fixture
def mine(make: Make) -> Path:
    """The package `lab` with a method, a profile, a part of one of our recipes for it, a table and a figure."""
    return make(
        "lab",
        {
            "__init__.py": "",
            "code.py": CODE,
            "conf/method/mine.yaml": METHOD.format(package="lab"),
            "conf/profile/brief.yaml": "name: brief\nsays: two epochs\nepochs: 2\n",
            "conf/experiment/lab/digits.yaml": "# @package _global_\nschedule:\n  epochs: 7\n",
            "conf/experiment/demo/digits/mine.yaml": "# @package _global_\nschedule:\n  l2: 0.125\n",
            "papers/own/table2.yaml": TABLE,
            "papers/own/figures/one.yaml": "title: One\nplot: points\ntable: own/table2\nx: at\n",
        },
    )


def test_choices_are_those_of_both(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names("method")[-1] == "mine" and "set" in names("method")
    assert {"lab/digits", "demo/digits"} <= set(names("experiment")) and "demo/digits/mine" not in names("experiment")
    assert compose(["method=mine", "experiment=lab/digits"])["schedule"]["epochs"] == 7
    with pytest.raises(Misuse, match=r"there is no method 'mien'\. Did you mean 'mine'"):
        compose(["method=mien"])
    monkeypatch.delenv(packages.VARIABLE)
    assert "mine" not in names("method")
    with pytest.raises(Misuse, match="there is no method 'mine'"):
        compose(["method=mine"])


def test_our_recipe_may_say_something_of_ones_own_method(mine: Path) -> None:
    own = compose(["experiment=demo/digits", "method=mine"])["schedule"]
    ours = compose(["experiment=demo/digits", "method=dense"])["schedule"]
    assert own == {**ours, "l2": 0.125}


@pytest.mark.parametrize("chosen", ["method=mine", "method=set"])
def test_what_is_composed_is_what_hydra_composes(chosen: str, mine: Path) -> None:
    overrides = [chosen, "experiment=demo/digits"]
    assert resolve(overrides) == resolve_by_omegaconf(tuple(sorted(overrides)), [])
    assert search_path() == [f"hydra.searchpath=['file://{mine / 'lab' / 'conf'}']"]


def test_ours_compose_as_without(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["experiment=dsr/lenet_mnist", "method=dsr"]
    own = identify(overrides)
    monkeypatch.delenv(packages.VARIABLE)
    assert identify(overrides).key == own.key and identify(overrides).config == own.config


def test_a_stage_may_start_from_ones_own_method(mine: Path) -> None:
    config = compose(["method=gmp", "start={parent: ['method=mine']}"])
    assert config["start"]["parent"]["method"]["_target_"] == "lab.code.Mine"
    assert list(extensions(config)) == ["lab"]


def test_its_tables_and_figures_have_addresses(mine: Path) -> None:
    assert tables()["own/table2"] == mine / "lab/papers/own/table2.yaml"
    assert figures()["own/one"].is_relative_to(mine)
    (slot,) = select(["own/table2"])[0].slots()
    assert slot.address == "own/table2/mine/one"
    with pytest.raises(Misuse, match=r"There is no paper 'owm'\. Did you mean 'own'"):
        select(["owm"])
    assert titled("brief") == " (profile brief: two epochs)"


def test_architectures_are_counted_of_our_tables_only(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(architecture, "select", lambda addresses, papers: asked.extend(addresses) or [])
    assert architecture.wanted() == []
    assert "demo/digits" in asked and "own/table2" not in asked


def test_what_is_composed_is_kept_until_a_file_of_the_package_changes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("kept", {"conf/method/mine.yaml": METHOD.format(package="kept")})
    monkeypatch.setenv("REGROW_CACHE", str(folder / "cache"))
    code = (
        "import sys\nfrom runner.compose import compose, remembered\nwith remembered():\n"
        "    print(compose(['method=mine'])['method'].get('more'), 'hydra' in sys.modules)"
    )
    assert call(folder, "-c", code, allowed="kept").stdout == "None True\n"
    assert call(folder, "-c", code, allowed="kept").stdout == "None False\n"
    (folder / "kept/conf/method/mine.yaml").write_text(METHOD.format(package="kept") + "more: 3\n")
    assert call(folder, "-c", code, allowed="kept").stdout == "3 True\n"
    assert call(folder, "-c", code, allowed="kept").stdout == "3 False\n"


def test_a_mistake_is_told_by_the_command_and_not_by_what_it_remembers(make: Make) -> None:
    make("torch_without", {})
    with remembered(), pytest.raises(Misuse, match="neither conf/ nor papers/"):
        compose([])


# What is wrong


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, r"REGROW_PACKAGES lists lab, but .*/lab has neither conf/ nor papers/\.$"),
        ({"config/method/a.yaml": ""}, r"has neither conf/ nor papers/\. Did you mean 'config'\?"),
        ({"conf/method/set.yaml": ""}, r"lab and regrow both have conf/method/set\.yaml; give yours another name\."),
        ({"conf/config.yaml": ""}, r"lab has conf/config\.yaml, which is in no group\."),
        ({"conf/methods/a.yaml": ""}, r"lab has conf/methods/a\.yaml, which is in no group\. Did you mean 'method'\?"),
        ({"conf/hydra/launcher/a.yaml": ""}, r"lab has conf/hydra/launcher/a\.yaml, which is in no group\."),
        ({"conf/experiment/demo/digits.yaml": ""}, r"lab and regrow both have conf/experiment/demo/digits\.yaml"),
        ({"conf/experiment/demo/digits/rigl.yaml": ""}, r"would change a recipe of regrow's for regrow's own choices"),
        ({"conf/experiment/demo/digits/lenet_300_100/rigl.yaml": ""}, r"would change a recipe of regrow's"),
        ({"papers/dsr/mine.yaml": ""}, r"lab and regrow both have papers/dsr; give yours another name\."),
        ({"papers/mine.yaml": ""}, r"lab has papers/mine\.yaml, of no paper; move it to papers/PAPER/mine\.yaml\."),
    ],
)
def test_a_package_that_does_not_fit_is_misuse(files: dict[str, str], sentence: str, make: Make) -> None:
    make("lab", files)
    with pytest.raises(Misuse, match=sentence):
        names("method")
    with pytest.raises(Misuse, match=sentence):
        tables()


def test_two_packages_do_not_replace_each_others_files(make: Make) -> None:
    method = {"conf/method/mine.yaml": METHOD}
    make("lab", method, "other", method)
    with pytest.raises(Misuse, match=r"other and lab both have conf/method/mine\.yaml"):
        compose([])
    make("third", {"papers/own/a.yaml": TABLE}, "fourth", {"papers/own/b.yaml": TABLE})
    with pytest.raises(Misuse, match="fourth and third both have papers/own"):
        select(["own"])


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ("os", "lists os, which is Python's or regrow's; list packages of your own."),
        ("results", "lists results, which is Python's or regrow's"),
        ("torch", "lists torch, but "),
        ("lab.part", "'lab.part' should be top-level packages with commas between: my_pkg,other."),
        ("lab;other", "should be top-level packages"),
        (
            "laab",
            "lists laab, which cannot be found: pip install it, or have PYTHONPATH name the folder that it lies in.",
        ),
        ("laab", " Did you mean 'lab'?"),
        ("nothing_like_it", "lists nothing_like_it, which cannot be found"),
        ("single", "lists single, which is one file and no package"),
    ],
)
def test_what_cannot_be_listed_is_one_sentence_of_every_command(
    listed: str, sentence: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make("lab", {"conf/method/mine.yaml": METHOD}, allowed=listed)
    (folder / "single.py").write_text("raise RuntimeError('this is imported')\n")
    commands: list[tuple[Any, list[str]]] = [
        *[(main, ["method=dense"]), (main, ["--help"]), (main, ["-m", "method=dense,set"]), (runs.main, ["list"])],
        *[(submit.main, ["demo", "--dry-run"]), (calibrate.main, ["demo"])],
        *[(make_tables.main, ["demo"]), (make_figures.main, ["demo"])],
    ]
    for command, arguments in commands:
        assert command(arguments) == 2
        printed = capsys.readouterr()
        assert sentence in printed.err and len(printed.err.splitlines()) == 1 and printed.out == ""


def test_spaces_and_repetitions_in_the_list_are_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("lab", {"conf/method/mine.yaml": METHOD}, "more", {"papers/own/a.yaml": TABLE}, allowed=" lab, more,lab ,")
    assert [(each.name, each.conf is None, each.papers is None) for each in packages.packages()] == [
        ("lab", False, True),
        ("more", True, False),
    ]
    monkeypatch.setenv(packages.VARIABLE, "  ")
    assert packages.packages() == ()


# What may be built


def test_code_is_built_only_of_packages_that_are_listed(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {"_target_": "lab.code.Mine", "name": "mine"}
    assert check(section, "method").__name__ == "Mine"
    for what in ("join", "by_position"):  # what it imports from elsewhere, and what takes more than keywords
        with pytest.raises(Misuse, match=f"lab.code.{what}' is nothing that a configuration may build"):
            check({"_target_": f"lab.code.{what}"}, "method")
    monkeypatch.delenv(packages.VARIABLE)
    with pytest.raises(Misuse, match=r"; if lab is a package that you trust, allow it with REGROW_PACKAGES=lab\.$"):
        check(section, "method")
    for target in ("os.system", "torch.load", "results.collect.pack", "x"):
        with pytest.raises(Misuse, match=r"timm\.optim\.\.$"):
            check({"_target_": target}, "method")


def test_the_mend_keeps_what_is_listed(mine: Path) -> None:
    with pytest.raises(Misuse, match=r"lab\., torch\.optim\.,.* allow it with REGROW_PACKAGES=lab,theirs\.$"):
        check({"_target_": "theirs.code.Mine"}, "method")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import math\nclass Mine(Method)\n    pass\n", r"/lab/code\.py, line 3: SyntaxError: expected ':'\.$"),
        ("def f():\n\treturn 1\n        return 2\n", r"/lab/code\.py, line 4: TabError: inconsistent use of tabs"),
        ("import math\nMine = Methd\n", r"/lab/code\.py, line 3: NameError: name 'Methd' is not defined\.$"),
        ("from methods.gmp import GPM\n", r"/lab/code\.py, line 2: ImportError: cannot import name 'GPM' from"),
        (
            "import not_installed.part\n",
            r"/lab/code\.py, line 2: ModuleNotFoundError: No module named 'not_installed'; install what is missing, or "
            r"mend its name\.$",
        ),
        (
            "def f():\n    import json; json.loads('')\nf()\n",
            r"/lab/code\.py, line 3: JSONDecodeError: Expecting value",
        ),
        ("import sys\nsys.exit('no GPU')\n", r"/lab/code\.py, line 3: SystemExit: no GPU\.$"),
    ],
)
def test_a_mistake_in_a_module_is_told_with_its_line(
    code: str, sentence: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make("lab", {"__init__.py": "", "conf/method/mine.yaml": METHOD.format(package="lab"), "code.py": f"\n{code}"})
    assert main(["method=mine"]) == 2
    told = capsys.readouterr().err
    assert re.search(r"^regrow: method\._target_ = 'lab\.code\.Mine' cannot be imported: " + ".*" + sentence, told)
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (
            "class Mime(Method):\n    pass",
            "'lab.code.Mine' cannot be found: lab.code has no 'Mine'. Did you mean 'Mime'?",
        ),
        ("Mine = 3", "'lab.code.Mine' is nothing that a configuration may build."),
        (
            "@dataclass\nclass Mine(Method):\n    more: int = 1",
            "it takes arguments by position; give a dataclass kw_only=True, a function a * before its arguments.",
        ),
        ("class Mine:\n    pass", "makes no method: it should be a class on methods.base.Method, or a function that"),
        ("def Mine(*, keep_dense: list[str]) -> int: ...", "makes no method: "),
        (
            "@dataclass(kw_only=True)\nclass Mine(Method):\n    more: 'Tensr' = 1",
            "method: a type hint of lab.code.Mine cannot be read: NameError: name 'Tensr' is not defined.",
        ),
    ],
)
def test_what_is_no_method_is_one_sentence(
    code: str, sentence: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    imports = "from dataclasses import dataclass\nfrom methods.base import Method\n"
    conf = {"conf/method/mine.yaml": METHOD.format(package="lab")}
    make("lab", {"__init__.py": "", **conf, "code.py": f"{imports}{code}\n"})
    assert main(["method=mine"]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1


def test_a_function_may_make_a_method(make: Make) -> None:
    code = (
        "from methods.base import Method, Masked\n"
        "def Mine(*, keep_dense: list[str]) -> Method:\n    return Masked(keep_dense=keep_dense, sparsity=0.5)\n"
    )
    make("lab", {"__init__.py": "", "conf/method/mine.yaml": METHOD.format(package="lab"), "code.py": code})
    assert type(validate(compose(["method=mine"]))[2]).__name__ == "Masked"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"name: mine\nkeep_dense: [\nrevision: 1\n", r"/method/mine\.yaml is not valid YAML: line 4: expected ',' or"),
        (b"name: mine\n\trevision: 1\n", r"/method/mine\.yaml is not valid YAML: line 2: found character '\\t'"),
        (b"name: mine\nname: mine\n", r"/method/mine\.yaml is not valid YAML: line 2: found duplicate key name"),
        (b"name: ${mine\n", r"method=mine do not compose: one of their files is not in OmegaConf's grammar$"),
        (b"name: \xff\n", r"method=mine: a choice is not UTF-8: "),
        (b"- name: mine\n", r"method/mine\.yaml is a list; a choice is a mapping of options, NAME: VALUE\.$"),
        (b"", r"method\._target_ is missing; it should name something in "),
    ],
)
def test_a_choice_that_cannot_be_read_is_one_sentence(
    text: bytes, sentence: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make("lab", {"conf/method/mine.yaml": ""})
    (folder / "lab/conf/method/mine.yaml").write_bytes(text)
    assert main(["method=mine"]) == 2
    told = capsys.readouterr().err
    assert re.search(sentence, told.strip()) and told.count("\n") == 1
    assert main(["--help"]) == 0


# A stored configuration


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a run of the package `lab`'s method; nothing is listed any more."""
    folder = tmp_path_factory.mktemp("stored")
    write(folder / "lab", {"__init__.py": "", "code.py": CODE, "conf/method/mine.yaml": METHOD.format(package="lab")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(packages.VARIABLE, "lab")
        patch.syspath_prepend(folder)
        tiny = ["model.hidden=[8]", "dataset.train_subset=40", "schedule.epochs=1", f"runs={folder / 'runs'}"]
        assert main(["method=mine", *tiny]) == 0
    forget("lab")
    (path,) = (folder / "runs").glob("*/*/mine/*/seed0")
    (folder / "lab" / "__init__.py").write_text("raise RuntimeError('this is imported')\n")
    yield path


@pytest.mark.parametrize("command", ["evaluate", "rerun"])
def test_a_stored_run_of_a_package_that_is_not_listed_is_refused(
    command: str, stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(stored.parents[5])
    assert runs.main([command, str(stored), "--runs", str(stored.parents[4])]) == 2
    printed = capsys.readouterr().err
    assert "allow it with REGROW_PACKAGES=lab." in printed and len(printed.splitlines()) == 1
    assert runs.main(["show", str(stored)]) == 0
    assert "lab.code.Mine" in capsys.readouterr().out and "lab" not in sys.modules


@pytest.mark.parametrize("role", ["child", "parent"])
def test_a_frozen_task_of_a_package_that_is_not_listed_is_refused(
    role: str, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["method=mine"] if role == "child" else ["method=gmp", "start={parent: ['method=mine']}"]
    file = freeze(mine / "frozen", [Task(compose([*given, f"runs={mine}"]), tuple(given))], {})
    monkeypatch.delenv(packages.VARIABLE)
    outcome = attempt(load(file)[0])
    assert outcome.status == "refused" and "allow it with REGROW_PACKAGES=lab." in str(outcome.reason)
    assert "lab" not in sys.modules


def test_a_run_records_the_state_of_the_packages_that_it_names(stored: Path) -> None:
    told = json.loads((stored / "environment.json").read_text())["extensions"]
    assert list(told) == ["lab"] and list(told["lab"]) == ["version", "commit", "dirty", "digest"]
    assert re.fullmatch("[0-9a-f]{16}", told["lab"]["digest"])


def git(folder: Path, *words: str) -> None:
    own = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *own, *words], check=True, capture_output=True)


def test_a_packages_state_is_that_of_its_code(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner import environment as module

    folder = make("lab", {"code.py": CODE, "conf/method/mine.yaml": METHOD.format(package="lab")})
    config = compose(["method=mine"])

    def state() -> dict[str, Any]:
        module._extension.cache_clear()
        return describe("cpu", 1, config)["extensions"]["lab"]

    first = state()
    assert (first["commit"], first["dirty"]) == (None, None)
    git(folder, "init", "-q")
    assert state() == first  # in a checkout that does not hold it
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    committed = state()
    assert re.fullmatch("[0-9a-f]{40}", committed["commit"]) and committed["dirty"] is False
    (folder / "notes.txt").write_text("")
    assert state() == committed
    (folder / "lab" / "code.py").write_text(CODE + "\n")
    assert state()["dirty"] is True and state()["digest"] != committed["digest"]
    assert "extensions" not in describe("cpu", 1, compose(["method=set"]))
    monkeypatch.delenv(packages.VARIABLE)
    assert "extensions" not in describe("cpu", 1)


def test_readers_of_a_table_hear_of_different_and_of_uncommitted_code() -> None:
    class Ran:
        def __init__(self, digest: str, dirty: bool) -> None:
            self.environment = {"extensions": {"lab": {"commit": "c", "dirty": dirty, "digest": digest}, "odd": 3}}

    found = footnotes([Ran("aa", False), Ran("bb", True)])  # type: ignore[list-item]
    assert found == (
        "runs with different versions: lab aa and bb",
        "1 of 2 run(s) from a tree with uncommitted changes",
    )
    assert footnotes([Ran("aa", False), Ran("aa", False)]) == ()  # type: ignore[list-item]
    (remark,) = remarks_on(Path("x"), "completed", None, Ran("aa", True).environment)
    assert remark.what == "was run with uncommitted changes of lab, on its commit c."


# Other processes


def test_jobs_of_slurm_get_the_variable_and_the_folder(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = cluster(compose(["cluster=slurm"])["cluster"])
    assert isinstance(site, Slurm)
    lines = array_script(mine, site, mine).splitlines()
    assert "export REGROW_PACKAGES=lab" in lines
    assert f"export PYTHONPATH={shlex.quote(f'{ROOT}:{mine}')}${{PYTHONPATH:+:$PYTHONPATH}}" in lines
    monkeypatch.delenv(packages.VARIABLE)
    assert not any(
        "REGROW_PACKAGES" in line or str(mine) in line for line in array_script(ROOT, site, ROOT).splitlines()
    )


def test_a_pool_of_workers_runs_it(mine: Path) -> None:
    words = ["own", "--wait", "schedule.epochs=1", "dataset.train_subset=40", "cluster.workers=1"]
    done = call(mine, "scripts/submit.py", *words, allowed="lab")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((mine / "runs").glob("*/*/mine/*/seed0/summary.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["pool", "basic", "submitit_local"])
def test_launchers_of_hydra_run_it(launcher: str, mine: Path) -> None:
    more = ["experiment=demo/digits", "schedule.epochs=2"]
    done = call(mine, "-m", "runner", "-m", f"hydra/launcher={launcher}", "method=mine", *more, allowed="lab")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit code 0" in done.stdout


@pytest.mark.ddp
def test_two_processes_run_it(guide: Path) -> None:
    more = ["experiment=demo/digits", "method=saliency", "schedule.epochs=20", "trainer.devices=2", "seed=7"]
    done = call(guide, "-m", "runner", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (guide / "runs").glob("digits/*/saliency/*/seed7")
    assert json.loads((path / "environment.json").read_text())["ranks"] == 2
    assert json.loads((path / "summary.json").read_text())["final"]["mask/sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_groups_are_ours(mine: Path) -> None:
    assert "hydra" not in groups() and {"method", "experiment"} <= set(groups())
