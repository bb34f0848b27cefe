"""Two ranks: they equal one process and each other, notice when they do not, save together and miss a lost one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranked
import streams
import torch
from torch import Tensor

from runner import checkpoint
from runner.compose import CONF, compose
from runner.errors import RanksFailed
from runner.execute import execute
from runner.identity import run_dir
from runner.records import is_held, read_metrics
from runner.trainer import Interrupted
from runner.world import ALONE

pytestmark = pytest.mark.ddp

Ranks = tuple[dict[str, Any], dict[str, Any]]
RUNS = [*ranked.METHODS, "penalised"]
# Every rank draws noise for its own samples: the same in distribution, not in numbers.
NOISY = {"sparsevd"}


def launched(count: int, folder: Path, *scenes: str) -> tuple[dict[str, Any], ...]:
    """What the ranks of one launch by torchrun found."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Not --standalone: its rendezvous must be heard of every few seconds, which a starved machine may not manage.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--master-addr=127.0.0.1", f"--master-port={port}"]
    torchrun += [f"--nproc-per-node={count}"]
    path = os.pathsep.join(filter(None, (str(CONF.parent), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*torchrun, ranked.__file__, str(folder), *scenes],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return tuple(torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(count))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    first, second = launched(2, tmp_path_factory.mktemp("ranks"))
    return first, second


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not name.startswith("time/")}


def test_torchrun_is_recognised(ranks: Ranks) -> None:
    assert [found["world"] for found in ranks] == [(0, 2, 0, 2), (1, 2, 1, 2)]


@pytest.mark.parametrize("variant", ranked.VARIANTS)
@pytest.mark.parametrize("run", RUNS)
def test_masks_thresholds_and_scores_are_identical_after_every_step(run: str, variant: str, ranks: Ranks) -> None:
    one, other = (found["methods"][f"{run}/{variant}"] for found in ranks)
    assert len(one["digests"]) == 8
    assert one["digests"] == other["digests"]
    if run in (*ranked.OURS, *ranked.MOVING, "penalised"):
        assert (len(set(one["digests"])) > 1) == (run in ranked.MOVING)
    # At the end everything is, but for each rank's own generator: weights, optimizer state, history.
    assert different(one["state"], other["state"]) == ["torch"]
    assert one["history"] == other["history"]


@pytest.mark.parametrize("variant", ranked.VARIANTS)
@pytest.mark.parametrize("run", [run for run in RUNS if run not in NOISY])
def test_two_ranks_train_as_one_does(run: str, variant: str, ranks: Ranks, tmp_path: Path) -> None:
    """Batches of 11, the last one of 3, also in three micro-batches, of which one may be too small for two ranks."""
    method = ranked.Penalised() if run == "penalised" else None
    given = ranked.overrides("dense" if method else run, "lenet", *ranked.VARIANTS[variant])
    alone, together = ranked.trained(ALONE, tmp_path, given, method), ranks[0]["methods"][f"{run}/{variant}"]
    assert alone["state"].keys() == together["state"].keys()
    for name, tensor in alone["state"].items():
        if name.startswith(("model/", "optimizer/state/", "method/dense/", "method/scores/")):
            torch.testing.assert_close(together["state"][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
        elif name.startswith("method/") or name == "rng":
            assert torch.equal(together["state"][name], tensor), name
    for one, two in zip(alone["history"], together["history"], strict=True):
        assert timeless(two) == pytest.approx(timeless(one), rel=1e-4)


def test_evaluation_counts_every_sample_once(ranks: Ranks, tmp_path: Path) -> None:
    for size in ("3", "1000"):
        (metrics, count), other = (found["evaluation"][size] for found in ranks)
        assert (metrics, count) == other
        assert count == 13
        alone, _ = ranked.evaluation(ALONE, tmp_path)[size]
        assert metrics == pytest.approx(alone, rel=1e-6)


def test_the_firing_rate_is_that_of_all_ranks_images(ranks: Ranks, tmp_path: Path) -> None:
    one, other = (found["spikes"] for found in ranks)
    alone = ranked.spikes(ALONE, tmp_path)
    for size in ("1", "4"):
        (rates, mine), (others_rates, theirs) = one[size], other[size]
        assert rates == others_rates == alone[size][0] and 0 < rates["spikes/firing_rate"] < 1
        assert mine + theirs == alone[size][1] and 0 < theirs < mine
    assert one["history"] == other["history"]
    assert [line["spikes/firing_rate"] for line in one["history"]] == pytest.approx(
        [line["spikes/firing_rate"] for line in alone["history"]], rel=0.2
    )


@pytest.mark.parametrize("method", ranked.METHODS)
def test_a_stop_asked_of_one_rank_saves_all_and_resumes_bit_for_bit(method: str, ranks: Ranks) -> None:
    """With dropout, for which every rank draws from its own generator, and batch normalisation's own statistics."""
    for found in ranks:
        scene = found["resumption"][method]
        assert scene["stopped"] == [2, 5]  # both ranks, one step after the wish was heard of
        assert different(scene["whole"], scene["resumed"]) == []
    whole = [found["resumption"][method]["whole"] for found in ranks]
    assert different(*whole) == ["torch"]


def test_three_ranks_resume_bit_for_bit(tmp_path: Path) -> None:
    """Of two numbers the sum does not depend on the order, of three it does."""
    for found in launched(3, tmp_path, "resumption"):
        for scene in found["resumption"].values():
            assert scene["stopped"] == [2, 5]
            assert different(scene["whole"], scene["resumed"]) == []


def test_running_statistics_are_averaged(ranks: Ranks) -> None:
    one, other = (found["statistics"] for found in ranks)
    assert len(one["before"]) == 6  # the means and variances of three layers
    assert len(different(one["before"], other["before"])) == 6
    for name, mean in one["after"].items():
        assert torch.equal(mean, other["after"][name])
        torch.testing.assert_close(mean, (one["before"][name] + other["before"][name]) / 2)


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [
        ("set/generator", "masks/fc1.weight is not the same on rank 0 and on rank 1 after step 2"),
        ("deepr/generator", "masks/fc1.weight is not the same on rank 0 and on rank 1 after step 2"),
        ("static/mask", "masks/fc2.weight is not the same on rank 0 and on rank 1 after step 3"),
        ("dsr/threshold", "threshold is not the same on rank 0 and on rank 1 after step 2"),
        # These are compared at the end of every epoch.
        ("dense/weight", "model/fc2.bias is not the same on rank 0 and on rank 1 after step 4"),
        ("dense/momentum", "model/fc1.weight is not the same on rank 0 and on rank 1 after step 4"),
    ],
)
def test_a_difference_stops_the_run_with_the_tensors_name(fault: str, noticed: str, ranks: Ranks) -> None:
    for found in ranks:
        assert found["faults"][fault].startswith(noticed)


def test_rank_0_alone_touches_the_directory_and_reports(ranks: Ranks) -> None:
    """Over a stage and its parent, saved after every step, and once more when there is nothing left to do."""
    one, other = (found["executed"] for found in ranks)
    assert one["told"] == [*range(1, 41), 1, 2, 3]
    assert len(one["touched"]) > 100
    assert other["told"] == other["touched"] == []
    assert one["summary"] == other["summary"]
    assert one["summary"]["status"] == "completed" and one["summary"]["parent"]["seed"] == 0
    assert one["again"] == other["again"] == {"schema": 1, **one["summary"]}


def test_an_error_of_one_rank_is_everybodys(ranks: Ranks) -> None:
    one, other = (found["refusals"] for found in ranks)
    for name, begins in {
        "held": "Held: another process is running",
        "batch": "Misuse: 2 ranks cannot share batches of schedule.batch_size = 1",
        "devices": "Misuse: trainer.devices = 3, but 2 rank(s) were started on this node",
        "statistics": "Misuse: batch normalisation needs two samples on every rank, but 2 ranks share batches as small "
        "as 3",
    }.items():
        assert one[name] == other[name] and one[name].startswith(begins), one[name]
    for rank, found in enumerate((one, other)):
        assert f"data{rank}/mnist" in found["data"] and found["data"].startswith("Misuse: ")
    assert (one["together"], other["together"]) == (
        "Misuse: rank 1: node 1 has no data.",
        "Misuse: node 1 has no data.",
    )
    assert (one["unforeseen"], other["unforeseen"]) == ("RuntimeError: rank 1: OSError: broken", "OSError: broken")
    assert one["lead"] == other["lead"] == ["Held: held", 0]
    assert (one["odd"], other["odd"]) == ("Odd: no good", "RuntimeError: Odd: no good")


def test_another_number_of_ranks_goes_on_from_a_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    one, other = (found["other_sizes"] for found in ranks)
    alone = ranked.trained(ALONE, tmp_path, ranked.overrides("set", "lenet", *ranked.UNEVEN))
    assert one["pair"] == 1
    assert different(one["state"], other["state"]) == ["torch"]
    for name, tensor in alone["state"].items():
        if name.startswith("model/"):
            torch.testing.assert_close(one["state"][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    for line, expected in zip(one["history"], alone["history"], strict=True):
        assert timeless(line) == pytest.approx(timeless(expected), rel=1e-4)


# The ranks of trainer.devices=N

LONG = ["model.hidden=[24,12]", "schedule.epochs=120", "schedule.batch_size=128", "dataset.train_subset=512",
        "method=set", "method.count=40", "method.period=3", "trainer.device=cpu"]  # fmt: skip


def children() -> list[int]:
    """The ranks' process ids, by rank: in the order in which they were started."""
    return sorted(process.pid for process in multiprocessing.active_children() if process.pid is not None)


def test_a_signal_saves_all_ranks_and_the_same_command_resumes_bit_for_bit(tmp_path: Path) -> None:
    given = [*LONG, f"runs={tmp_path / 'stopped'}", "trainer.devices=2"]
    config = compose(given)
    path = run_dir(config["runs"], config)

    def ask(line: dict[str, Any]) -> None:
        if line["epoch"] == 2:
            assert is_held(path)
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(Interrupted):
        execute(config, given, ask)
    assert not is_held(path) and not (path / "summary.json").exists()
    state = checkpoint.load(path / "checkpoints")
    assert state is not None and 0 < state["position"]["step"] < 480 and len(state["others"]) == 1

    command = [sys.executable, "-m", "runner", "-m", *LONG, "trainer.devices=2"]
    command += [f"runs={tmp_path / 'stopped'},{tmp_path / 'whole'}"]  # resumed, and then without an interruption
    done = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = run_dir(tmp_path / "whole", config)
    lines = [[timeless(line) for line in read_metrics(p / "metrics.jsonl")[0]] for p in (path, whole)]
    assert len(lines[0]) == 120 and lines[0] == lines[1]
    ends = [checkpoint.read(p / "checkpoints" / checkpoint.LAST) for p in (path, whole)]
    assert different(*(ranked._tensors(end) for end in ends)) == []
    assert done.stdout.count("completed: ") == 2 and done.stdout.count("  epoch 120 ") == 2
    assert json.loads((whole / "environment.json").read_text())["ranks"] == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_is_named_and_nothing_recorded_is_lost(rank: int, tmp_path: Path) -> None:
    given = [*LONG, f"runs={tmp_path}"]
    config = compose([*given, "trainer.devices=2"])
    path = run_dir(tmp_path, config)
    seen: list[dict[str, Any]] = []

    def kill(line: dict[str, Any]) -> None:
        seen.append(line)
        if len(seen) == 2:
            os.kill(children()[rank], signal.SIGKILL)

    with pytest.raises(RanksFailed, match=rf"rank {rank} was lost \(killed by SIGKILL\); .* run again to resume"):
        execute(config, given, kill)
    assert not is_held(path)
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "failed" and f"rank {rank} was lost" in summary["reason"]
    assert f"rank {rank} was lost" in (path / "log.txt").read_text()
    recorded, problems = read_metrics(path / "metrics.jsonl")
    assert not problems and recorded[: len(seen)] == seen[: len(recorded)] and len(recorded) >= 2
    # One process, too, can finish what two have begun.
    assert execute(compose(given), given)["status"] == "completed"
    assert len(read_metrics(path / "metrics.jsonl")[0]) == 120


def test_misuse_found_by_the_ranks_is_misuse(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runner", "dataset=mnist", f"data.root={tmp_path}", f"runs={tmp_path / 'runs'}"]
    done = subprocess.run([*command, "trainer.devices=2"], cwd=CONF.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("regrow: ") and "python scripts/fetch_data.py mnist" in done.stderr
    assert done.stderr.count("\n") == 1 and list((tmp_path / "runs").rglob("seed*")) == []


def test_a_finished_run_starts_no_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [*LONG, "schedule.epochs=1", f"runs={tmp_path}"]
    summary = execute(compose(given), given)
    monkeypatch.setattr("runner.ranks.launch", None)
    assert execute(compose([*given, "trainer.devices=2"]), given) == {"schema": 1, **summary}


def test_a_broken_report_ends_the_ranks(tmp_path: Path) -> None:
    """Whoever the launching process reports to has gone: what runs is saved, not left running."""
    given = [*LONG, f"runs={tmp_path}", "trainer.devices=2"]

    def broken(line: dict[str, Any]) -> None:
        raise BrokenPipeError("nobody listens")

    with pytest.raises(BrokenPipeError):
        execute(compose(given), given, broken)
    assert children() == []
    state = checkpoint.load(run_dir(tmp_path, compose(given)) / "checkpoints")
    assert state is not None and 0 < state["position"]["step"] < 480


@pytest.mark.parametrize("name", ["whole", "accumulated"])
def test_ranks_read_on_in_their_own_streams(name: str, ranks: Ranks, tmp_path: Path) -> None:
    """Stopped in mid-epoch they go on bit for bit, each with the memory of its streams."""
    held = {"whole": ({0: 3}, {3: 2}), "accumulated": ({0: 2, 3: 1}, {2: 1, 4: 1})}[name]
    for found, mine in zip(ranks, held, strict=True):
        scene = found["text_streams"][name]
        assert scene["stopped"] == [(3, mine)]  # one step after the wish was heard of
        assert different(scene["whole"], scene["resumed"]) == []
        assert different(*scene["memories"]) == []
    one, other = (found["text_streams"][name] for found in ranks)
    assert different(one["whole"], other["whole"]) == ["torch"]
    if name == "accumulated":  # no dropout: the same numbers, as two ranks or as one
        root = streams.write(tmp_path)
        given = streams.overrides(root, "schedule.epochs=2", "dataset.length=22", *ranked.UNEVEN_STREAMS)
        alone = ranked.trainer(ALONE, tmp_path / "alone", given)
        for line, two in zip(alone.fit(), one["history"], strict=True):
            assert two == pytest.approx(timeless(line), rel=1e-4)
