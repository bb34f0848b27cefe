"""Runs packed side by side: which go together, their logs, exit codes, signals and crashes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from runner import local, pack
from runner.cluster import Local, Slurm, parallel
from runner.compose import compose
from runner.errors import Misuse
from runner.pack import packs, worst
from runner.signals import STOP
from runner.slurm import array_script, arrays, devices
from runner.submission import Task, freeze
from scripts import submit

ROOT = Path(__file__).resolve().parents[1]


def made(*after: Sequence[int]) -> list[Task]:
    config = compose()
    return [Task({**config, "seed": seed}, (), tuple(parents)) for seed, parents in enumerate(after)]


def test_a_pack_holds_runs_of_one_generation() -> None:
    tasks = made((), (0,), (0,), (), (3,), (), (4,))
    assert packs(tasks, 2) == [(0, 3), (1, 2), (4,), (5,), (6,)]
    assert packs(tasks, 3) == [(0, 3, 5), (1, 2, 4), (6,)]
    assert packs(tasks, 1) == [(index,) for index in range(7)]  # alone, a run's pack has the run's own number


def test_arrays_of_packs_stay_within_slurms_indices(tmp_path: Path) -> None:
    tasks = made(*[()] * 2100, *[(0,)] * 300)
    chunks = arrays(tasks, Slurm(time=1, cpus_per_task=1, max_parallel=9, pack=2))
    assert [(array.level, array.offset, len(array.packs), array.parallel) for array in chunks] == [
        (0, 0, 1001, 4),
        (0, 1001, 49, 4),
        (1, 1050, 150, 9),
    ]
    assert chunks[1].tasks == {index: (2002 + 2 * index, 2003 + 2 * index) for index in range(49)}
    assert chunks[1].command(tmp_path, [])[2:] == ["--array=0-48%4", f"{tmp_path}/array.sh", "1001"]
    assert [task for array in chunks for own in array.tasks.values() for task in own] == list(range(2400))


@pytest.mark.slow
def test_the_array_script_executes_its_pack(tiny: list[str], tmp_path: Path) -> None:
    """Pack 1 of five runs, of which one diverges; and once more, when both are there already."""
    rates = ("0.1", "0.1", "0.1", "1e30", "0.1")
    parts = [[*tiny, f"runs={tmp_path}/runs", f"seed={seed}", f"schedule.lr={lr}"] for seed, lr in enumerate(rates)]
    tasks = [Task(compose(part), tuple(part)) for part in parts]
    freeze(tmp_path, tasks, {})
    script = tmp_path / "array.sh"
    script.write_text(array_script(tmp_path, Slurm(time=1, cpus_per_task=2, max_parallel=1, pack=2), tmp_path))
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "9"}
    for _ in range(2):
        done = subprocess.run(["bash", str(script), "1"], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == [
        f"{tasks[2].name}: {tmp_path}/9_0.2.log",
        f"{tasks[3].name}: {tmp_path}/9_0.3.log",
        f"{tasks[2].name}: exit code 0",
        f"{tasks[3].name}: exit code 3",
    ]
    assert [task.path.exists() for task in tasks] == [False, False, True, True, False]
    assert [(tmp_path / f"9_0.{index}.log").read_text().count(tasks[index].name) for index in (2, 3)] == [2, 2]
    assert json.loads((tasks[2].path / "summary.json").read_text())["status"] == "completed"


PLAYER = """\
import os, signal, sys, time
from pathlib import Path
index, folder = int(sys.argv[-1]), Path(sys.argv[-2]).parent
act = (folder / f"act{index}").read_text()
def save(number, frame):
    print("saves after", signal.Signals(number).name, flush=True)
    sys.exit(75)
if act == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if act == "save":
    signal.signal(signal.SIGUSR1, save)
    signal.signal(signal.SIGTERM, save)
if act in ("save", "unready"):
    (folder / f"ready{index}").touch()
    for _ in range(100):
        time.sleep(0.05)
    sys.exit("nobody told")
while not all((folder / f"ready{other}").exists() for other in (folder / "waits").read_text().split()):
    time.sleep(0.02)
if act.startswith("tell"):
    os.kill(os.getppid(), signal.Signals[act.split()[1]])
    sys.exit(0)
sys.exit(int(act))
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, list[str]]]]:
    """Acts -> the exit code of a pack of processes that play them, and what each of them has said."""
    (tmp_path / "player.py").write_text(PLAYER)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nexec {sys.executable} {tmp_path}/player.py "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    kinds = (*STOP, signal.SIGHUP)
    before = [signal.getsignal(kind) for kind in kinds]

    def play(*acts: str) -> tuple[int, list[str]]:
        file = freeze(tmp_path, made(*[()] * len(acts)), {})
        waits = [str(index) for index, act in enumerate(acts) if act in ("save", "unready")]
        (tmp_path / "waits").write_text(" ".join(waits))
        for index, act in enumerate(acts):
            (tmp_path / f"act{index}").write_text(act)
        code = pack.main([str(file), "0", str(len(acts))])
        return code, [(tmp_path / f"pack_0.{index}.log").read_text() for index in range(len(acts))]

    yield play
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)


@pytest.mark.parametrize(
    ("acts", "code"),
    [("0 0", 0), ("0 3", 3), ("2 3 0", 2), ("3 1 2", 1), ("1 75 0", 75), ("0 9", 1)],
)
def test_the_worst_exit_code_is_the_packs(acts: str, code: int, play: Callable[..., tuple[int, list[str]]]) -> None:
    assert play(*acts.split())[0] == code
    assert worst([int(act) for act in acts.split()]) == code


def test_a_crash_leaves_the_others_alone(
    play: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert play("die", "0", "0")[0] == 1
    endings = [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()[3:]]
    assert endings == ["died of SIGKILL; the next submission resumes it", "exit code 0", "exit code 0"]


@pytest.mark.parametrize("kind", ["SIGUSR1", "SIGTERM"])
def test_a_signal_reaches_every_run_of_a_pack(kind: str, play: Callable[..., tuple[int, list[str]]]) -> None:
    code, said = play("save", "save", f"tell {kind}")
    assert code == 75
    assert said == [f"saves after {kind}\n"] * 2 + [""]


def test_what_was_not_listening_yet_is_queued_again(play: Callable[..., tuple[int, list[str]]]) -> None:
    assert play("unready", "tell SIGUSR1")[0] == 75


def test_after_a_signal_nothing_begins(tmp_path: Path, play: Callable[..., tuple[int, list[str]]]) -> None:
    started = pack.Pack()
    started.asked = signal.SIGTERM
    assert started.run({4: (["false"], tmp_path / "log")}) == {4: 75}
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("arguments", [["0"], ["x", "2"], ["0", "0"], ["3", "2"]])
def test_mistakes_are_one_sentence(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = freeze(tmp_path, made((), (), ()), {})
    assert pack.main([str(file), *arguments]) == 2
    assert capsys.readouterr().err.startswith("regrow: ")


def test_workers_share_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_devices", lambda: ["0", "1"])
    tasks = made(*[()] * 20)
    assert local.capacity(tasks, Local(pack=3)) == (6, ["0", "1"])
    assert local.capacity(tasks, Local(pack=3, workers=2)) == (2, ["0", "1"])


def test_estimates_count_packed_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.cluster._gpus", lambda: 2)
    assert parallel(Slurm(time=1, cpus_per_task=1, max_parallel=4, pack=3), "gpu", 1) == 12
    assert parallel(Local(pack=3), "gpu", 1) == 6


def test_runs_of_several_processes_are_not_packed() -> None:
    with pytest.raises(Misuse, match=r"cluster\.pack = 2 is for runs of one process, not of 3; leave it 1"):
        devices(made(()), Slurm(time=1, cpus_per_task=1, max_parallel=1, pack=2, nodes=3))


def test_a_dry_run_shows_packs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["demo/digits/set", "--dry-run", "--cluster", "slurm", "cluster.pack=4", "--runs", str(tmp_path / "r")]
    assert submit.main(arguments) == 0
    said = capsys.readouterr().out
    assert "4 runs side by side in each array task.\n" in said
    assert '/tasks.jsonl "$((SLURM_ARRAY_TASK_ID + ${1:-0}))" 4 &\n' in said and " -m runner.pack " in said
    assert "job0=$(sbatch --parsable --array=0-2%16 " in said
