"""Worlds by their environment, shares of batches, fingerprints: what needs no second process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from runner.__main__ import main
from runner.compose import compose
from runner.errors import Misuse, RanksFailed
from runner.experiment import make, validate
from runner.ranks import _blamed, _Failure, _Heard
from runner.records import RunDirectory
from runner.replicas import fingerprints
from runner.trainer import Trainer
from runner.world import ALONE, World, first_host, recognised

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "1",
}  # fmt: skip
BATCH = {"SLURM_JOB_ID": "70", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_NODEID": "0"}
SRUN = {
    **BATCH, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "1", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "n[07-08]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "8"}, None),  # some clusters say how many, to nobody in particular
        (TORCHRUN, World(5, 8, 1, 4, "env://")),
        ({**TORCHRUN, **SRUN}, World(5, 8, 1, 4, "env://")),  # torchrun in a step: its ranks count
        (SRUN, World(3, 4, 1, 2, "tcp://n07:17171")),
        ({**SRUN, "SLURM_STEP_ID": "2"}, World(3, 4, 1, 2, "tcp://n07:17172")),
        ({**SRUN, "MASTER_ADDR": "ib0", "MASTER_PORT": "9"}, World(3, 4, 1, 2, "tcp://ib0:9")),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_LOCALID": "0"}, World(3, 4, 0, 1, "tcp://n07:17171")),
        (BATCH, None),  # the batch script itself
        ({**BATCH, "SLURM_STEP_NUM_TASKS": "1"}, None),  # an interactive shell
    ],
)
def test_worlds_by_their_environment(environ: dict[str, str], world: World | None) -> None:
    assert recognised(environ) == world


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not MASTER_ADDR and MASTER_PORT; start the ranks with torchrun"),
        ({**TORCHRUN, "RANK": "8"}, "rank 8 of 8, local rank 1 of 4, which cannot be"),
        ({**TORCHRUN, "WORLD_SIZE": "many"}, "WORLD_SIZE = 'many' in the environment should be a whole number"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2-3"}, "SLURM_STEP_TASKS_PER_NODE = '2-3'"),
        ({**SRUN, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST = ''"),
    ],
)
def test_an_environment_that_cannot_be_is_misuse(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(Misuse) as caught:
        recognised(environ)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n0", "n0"),
        ("n0,n1", "n0"),
        ("n[0-1,5],m3", "n0"),
        ("gpu-a[007-12]", "gpu-a007"),
        ("r1[3,5]-ib,r2", "r13-ib"),
        ("login.site.org", "login.site.org"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@given(st.integers(1, 40), st.integers(1, 9))
def test_shares_hold_every_sample_once_and_weigh_it_alike(samples: int, size: int) -> None:
    batch = torch.randperm(samples)
    worlds = [World(rank, size) for rank in range(size)]
    shares = [world.share(batch) for world in worlds]
    assert torch.cat([mine for mine, weight in shares if weight]).equal(batch)
    # The average over the ranks of weighted local means is the mean over the batch; no rank is without a sample.
    average = sum(weight * mine.double().mean() for mine, weight in shares) / size
    assert average == pytest.approx(batch.double().mean())
    assert all(len(mine) for mine, _ in shares)


def test_alone_everything_is_as_without_ranks() -> None:
    batch = torch.arange(7)
    mine, weight = ALONE.share(batch)
    assert mine.equal(batch) and weight == 1
    model = torch.nn.Linear(2, 2)
    assert ALONE.replicate(model) is model
    assert ALONE.ballot().cast(3, -1) == (3, -1)
    assert (ALONE.lead(lambda: 5), ALONE.together(lambda: 6), ALONE.gather(7)) == (5, 6, [7])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_every_single_change_shows_in_the_fingerprint(dtype: torch.dtype) -> None:
    tensor = torch.arange(60).view(3, 20).remainder(2).to(dtype)
    seen = {fingerprints(tensor)[""]}
    for position in range(60):
        other = tensor.clone()
        other.view(-1)[position] = 1 - other.view(-1)[position].int()
        seen.add(fingerprints(other)[""])
    assert len(seen) == 61
    assert fingerprints(tensor.clone())[""] in seen
    assert fingerprints(tensor.T)[""] not in seen  # it is the order that counts, not the layout in memory
    assert fingerprints(tensor.T.contiguous())[""] == fingerprints(tensor.T)[""]


def test_masks_with_the_same_sum_of_positions_have_other_fingerprints() -> None:
    masks = torch.zeros(6, 4, dtype=torch.bool)
    for row, pair in enumerate([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]):
        masks[row, list(pair)] = True
    assert len({fingerprints(mask)[""] for mask in masks}) == 6


def test_fingerprints_are_named_by_the_path_to_the_tensor() -> None:
    found = fingerprints({"masks": {"fc1": torch.ones(2)}, "threshold": 0.5, "queue": [torch.ones(1)], "note": "text"})
    assert list(found) == ["masks/fc1", "threshold", "queue/0"]
    assert fingerprints({"a": 0.5}) != fingerprints({"a": 0.25})
    assert fingerprints({}) == {}


def test_the_seeds_of_ranks(tiny: list[str], tmp_path: Path) -> None:
    """Rank 0 has those of a run without other ranks."""
    from data.order import derive

    t = Trainer(make(compose(tiny)), RunDirectory(tmp_path))
    assert t.own_seed("augment", 3, 1) == derive(0, "augment", 3, 1)
    t.world = World(2, 4)
    assert t.own_seed("augment", 3, 1) == derive(0, "augment", 3, 1, 2)


def test_devices_are_the_machines_business() -> None:
    from runner.identity import key

    assert key(compose(["trainer.devices=2"])) == key(compose([]))
    with pytest.raises(Misuse, match=r"trainer\.devices = 101 ranks cannot share batches of .*batch_size = 100"):
        validate(compose(["trainer.devices=101"]))
    with pytest.raises(Misuse, match=r"trainer\.devices = 0 should be in the range 1 <= x"):
        validate(compose(["trainer.devices=0"]))


def test_more_devices_than_there_are_is_misuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from runner.execute import execute

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(Misuse, match=r"trainer\.devices = 3, but this machine has 2 CUDA device"):
        execute(compose(["trainer.devices=3", f"runs={tmp_path}"]), [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rank", "spoken"), [("0", "there is no flag --bad"), ("1", "")])
def test_rank_0_alone_speaks(
    rank: str, spoken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**TORCHRUN, "LOCAL_RANK": "0", "RANK": rank}.items():
        monkeypatch.setitem(os.environ, name, value)
    assert main(["--bad"]) == 2
    assert spoken in capsys.readouterr().err
    assert (spoken == "") == (rank != "0")


def failure(text: str, missing: bool, error: Exception | None = None) -> _Failure:
    return _Failure(error, text, f"traceback of {text}", missing)


STAYS = "what is recorded stays; run again to resume"
GONE = failure("RuntimeError: Connection closed by peer", missing=True)
ITS_OWN = failure("ValueError: no such sample", missing=False)
NO_DATA = failure("Misuse: no data", False, Misuse("no data"))


@pytest.mark.parametrize(
    ("first", "exit_code", "failures", "expected"),
    [
        (
            1,
            -9,
            {0: GONE},
            RanksFailed(f"rank 1 was lost (killed by SIGKILL); {STAYS}"),
        ),
        (1, 3, {}, RanksFailed(f"rank 1 was lost (exit code 3); {STAYS}")),
        # Whoever only misses another rank may well end first.
        (0, 1, {0: GONE, 1: ITS_OWN}, RanksFailed("rank 1: ValueError: no such sample")),
        (0, 1, {0: NO_DATA, 1: NO_DATA}, Misuse("no data")),
        (0, 1, {0: GONE, 1: NO_DATA}, Misuse("no data")),
    ],
)
def test_who_is_to_blame(first: int, exit_code: int, failures: dict[int, _Failure], expected: Exception) -> None:
    process = ProcessFailure(local_rank=first, pid=1, exitcode=exit_code, error_file="")
    found = _blamed(ChildFailedError("work", {first: process}), _Heard(failures=failures))
    assert (type(found), str(found)) == (type(expected), str(expected))


def test_a_dataset_is_dealt_to_ranks_batch_by_batch(tiny: list[str]) -> None:
    dataset = make(compose([*tiny, "dataset.test_size=13"])).data
    every = [labels for _, labels in dataset.test_batches(3)]
    dealt: Callable[..., Any] = lambda rank, ranks: [labels for _, labels in dataset.test_batches(3, rank, ranks)]  # noqa: E731
    assert [len(labels) for labels in every] == [3, 3, 3, 3, 1]
    for ranks in (1, 2, 3, 7):
        hands = [dealt(rank, ranks) for rank in range(ranks)]
        for index, labels in enumerate(every):
            assert hands[index % ranks][index // ranks].equal(labels)
        assert sum(map(len, hands)) == 5
