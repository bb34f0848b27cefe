"""`python -m runner`: exit codes, one-sentence errors, sweeps, cells, and what is left behind."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.__main__ import _cells, _expand, main
from runner.compose import CONF, groups, names

TINY = ["model.hidden=[16]", "schedule.epochs=2", "dataset.train_subset=256"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder, with runs/ below it."""
    monkeypatch.delenv("REGROW_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["method=set", "method.sparsity=1.2"], "regrow: method.sparsity = 1.2 should be in the range 0 <= x < 1."),
        (["schedule.epocs=3"], "Did you mean 'epochs'?"),
        (["method=rigll"], "regrow: there is no method 'rigll'."),
        (["--verbose"], "regrow: there is no flag --verbose; see python -m runner --help."),
        (["dataset=mnist", "data.root=/nowhere"], "python scripts/fetch_data.py mnist --root /nowhere"),
        (["cell=demo/digits/dsrr/s90"], "Did you mean 'dsr'?"),
        (["cell=demo/digits"], "is not one cell"),
        (["cell=dsr/table4/epochs/lenet"], "regrow: "),
        (["-m", "method=set,dsrr"], "there is no method 'dsrr'"),
        (["trainer.device=tpu"], "trainer.device = 'tpu' should be one of auto, cpu, cuda, mps."),
    ],
)
def test_misuse_is_one_sentence_exit_2_and_leaves_nothing(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_run_a_repetition_and_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "method=set", "method.count=20"]) == 0
    assert "completed" in capsys.readouterr().out
    assert main(["-m", *TINY, "method=set,static", "seed=0,1", "method.sparsity=0.5"]) == 0
    assert len(list(tmp_path.rglob("summary.json"))) == 5
    capsys.readouterr()
    assert main([*TINY, "method=set", "method.count=20"]) == 0
    assert "epoch" not in capsys.readouterr().out  # not repeated
    assert {p.name for p in tmp_path.iterdir()} == {"runs"}  # no outputs/, no multirun/


def test_a_diverged_run_exits_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "schedule.lr=1e30"]) == 3
    assert "diverged" in capsys.readouterr().out


def test_cfg_prints_the_configuration_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "experiment=dsr/lenet_mnist", "method=dsr"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# key ") and "count: 600" in out
    assert list(tmp_path.iterdir()) == []


def test_sweeps_read_hydras_grammar() -> None:
    assert _expand(["a=1,2", "b=x", "c=range(0,2)"]) == [
        [f"a={a}", "b=x", f"c={c}"] for a in (1, 2) for c in (0, 1)
    ]  # fmt: skip
    assert _expand(['lr="1:2 -> 1, 3:4 -> 2"']) == [['lr="1:2 -> 1, 3:4 -> 2"']]


def test_a_cell_is_its_runs() -> None:
    jobs = _cells(["cell=dsr/lenet_mnist/dsr/s95", "profile=smoke"])
    assert [job[-2] for job in jobs] == ["seed=0", "seed=1", "seed=2"]
    assert all("method.sparsity=0.95" in job and job[-1] == "profile=smoke" for job in jobs)
    assert len(_cells(["cell=dsr/lenet_mnist/dsr/s95", "seed=7"])) == 1


def test_help_has_a_line_for_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for group in groups():
        (part,) = re.findall(rf"^{group}=\n((?:  .*\n)+)", printed, re.MULTILINE)
        told = {line.split()[0]: len(line.split()) - 1 for line in part.splitlines()}
        assert tuple(told) == names(group)
        assert max(map(len, part.splitlines())) <= max(100, shutil.get_terminal_size().columns)
        assert min(told.values()) > 2, f"a choice of {group} has no comment at its file's head"


def test_help_ends_quietly_with_its_reader() -> None:
    done = subprocess.run(
        f"{sys.executable} -m runner --help | head -1", shell=True, cwd=CONF.parent, capture_output=True, text=True
    )
    assert done.stdout.startswith("python -m runner") and not done.stderr


def test_help_imports_no_torch() -> None:
    code = "import sys; from runner.__main__ import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CONF.parent, capture_output=True, text=True)
    assert done.returncode == 0
    assert "\nmethod=\n  acdc " in done.stdout
