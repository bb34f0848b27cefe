"""What is compared between ranks, and when: one process, told what another one would say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from runner.compose import compose
from runner.experiment import make
from runner.records import RunDirectory
from runner.replicas import RanksDiffer, Replicas
from runner.trainer import Trainer
from runner.world import Ballot, World

T = TypeVar("T")


@dataclass
class Recorded(Ballot):
    """Counts at once, and the other rank votes as ours does but for what the test puts into its mouth."""

    casts: list[tuple[int, ...]] = field(default_factory=list)
    others: tuple[int, ...] | None = None

    def cast(self, *wishes: int) -> Sequence[int]:
        self.casts.append(wishes)
        return [max(pair) for pair in zip(wishes, self.others or wishes, strict=True)]


@dataclass
class Two(World):
    """Rank 0 of two, of which the other is in our hands."""

    size: int = 2
    box: Recorded = field(default_factory=Recorded)
    elsewhere: dict[str, int] = field(default_factory=dict)
    gathered: list[Any] = field(default_factory=list)

    def ballot(self) -> Ballot:
        return self.box

    def gather(self, value: T) -> list[T]:
        self.gathered.append(value)
        return [value, {**value, **self.elsewhere}]  # type: ignore[dict-item,list-item]


def replicas(method: str, path: Path, *more: str) -> tuple[Two, Replicas, Any]:
    given = ["dataset=synthetic", "dataset.shape=[1,4,4]", "dataset.train_size=36", "model.hidden=[20,10]"]
    t = Trainer(make(compose([*given, f"method={method}", "schedule.batch_size=12", *more])), RunDirectory(path))
    t.e.method.begin(t.ctx)
    world = Two()
    return world, Replicas(world, t.model, t.optimizer, t.e.method, t.ctx), t


def test_a_step_that_changes_no_mask_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    world, pair, t = replicas("set", tmp_path)
    whole = t.e.method.replicated
    monkeypatch.setattr(t.e.method, "replicated", lambda: looks.append(1) or whole())
    for _ in range(3):
        assert pair.decide(False, False) == (False, False)
    assert len(looks) == 1 and len(set(world.box.casts)) == 1
    t.e.method.mask.tensors[0].view(-1)[0] += 1  # whoever writes to a mask, it shows
    pair.decide(False, False)
    assert len(looks) == 2
    assert len(set(world.box.casts)) == 2


def test_wishes_of_either_rank_count(tmp_path: Path) -> None:
    world, pair, _ = replicas("dense", tmp_path)
    low = -(2**63)
    assert pair.decide(True, False) == (True, False)
    world.box.others = (1, 0, low, low)
    assert pair.decide(False, True) == (True, True)


def test_another_print_of_the_other_rank_names_the_tensor(tmp_path: Path) -> None:
    world, pair, t = replicas("dsr", tmp_path)
    pair.decide(False, False)
    mine = world.box.casts[-1][2]
    t.ctx.step = 7
    for theirs in (mine + 1, mine - 1):  # whichever is the larger
        world.box.others = (0, 0, theirs, -theirs)
        world.elsewhere = {"masks/fc2.weight": 1}
        with pytest.raises(RanksDiffer, match=r"^masks/fc2\.weight is not .* on rank 0 and on rank 1 after step 7"):
            pair.decide(False, False)
        world.elsewhere = {}
        with pytest.raises(RanksDiffer, match="masks were not the same"):  # though they are by now
            pair.decide(False, False)


@pytest.mark.parametrize(
    "name",
    ["masks/fc1.weight", "threshold", "model/fc3.bias", "model/norm1.weight", "optimizer/fc1.weight/momentum_buffer",
     "rng"],
)  # fmt: skip
def test_everything_is_compared(name: str, tmp_path: Path) -> None:
    world, pair, t = replicas("dsr", tmp_path, "model.batch_norm=all")
    t.model(torch.ones(2, 1, 4, 4)).sum().backward()
    t.optimizer.step()
    pair.compare_everything()
    assert name in world.gathered[-1]
    world.elsewhere = {name: 1}
    with pytest.raises(RanksDiffer, match=rf"{name} is not the same"):
        pair.compare_everything()


def test_a_tensor_that_only_one_rank_has_is_a_difference(tmp_path: Path) -> None:
    world, pair, _ = replicas("dense", tmp_path)
    world.elsewhere = {"optimizer/fc1.weight/exp_avg": 1}
    with pytest.raises(RanksDiffer, match=r"^optimizer/fc1\.weight/exp_avg is not"):
        pair.compare_everything()


def test_running_statistics_are_each_ranks_own(tmp_path: Path) -> None:
    world, pair, _ = replicas("dense", tmp_path, "model.batch_norm=all")
    pair.compare_everything()
    assert set(pair.statistics()) == {f"norm{i}.running_{kind}" for i in (1, 2, 3) for kind in ("mean", "var")}
    assert "model/norm1.num_batches_tracked" in world.gathered[-1]
    assert not any("running" in name for name in world.gathered[-1])
