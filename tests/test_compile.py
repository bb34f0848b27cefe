"""torch.compile with every method: the losses of eager training, no graph break, no compilation that is not needed.

Graphs are captured as always and then run by PyTorch's own operators ("aot_eager"), but for a few methods that run
the generated code: what breaks or recompiles a graph is the same, and a compiler for each method would take an hour.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from runner.compose import compose, file
from runner.experiment import make
from runner.records import RunDirectory
from runner.trainer import Trainer
from tests.test_contract import BUSY, OURS
from tests.test_contract import METHODS as ALL

STEPS = 20
NET = ("model=resnet20", "model.depth=8", "model.width=4", "dataset=synthetic", "dataset.shape=[3,8,8]")
LENGTH = ("dataset.train_size=40", "dataset.test_size=4", "schedule.batch_size=8", "schedule.epochs=4")
# Methods that begin with a parent's weights or masks train as others do that are here.
STAGE = re.compile(r"(?m)^start:")
METHODS = [name for name in ALL if not STAGE.search(file("method", name).read_text())]
# Three switches of phases, with an epoch each; a rate at which differences of rounding do not grow into others within
# so few steps, as they do at the usual one.
OPTIONS = {"acdc": ["method.phase_epochs=[1,1,1,1]"], "sparsevd": ["schedule.lr=0.003"]}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def trained(method: str, folder: Path, compiled: bool) -> tuple[list[float], int]:
    """The loss of every step, and how often masks changed."""
    given = [*NET, *LENGTH, f"method={method}", *BUSY.get(method, []), *OPTIONS.get(method, [])]
    config = compose([*given, f"trainer.compile={str(compiled).lower()}"])
    trainer = Trainer(make(config), RunDirectory(folder / f"{compiled}"))
    torch.manual_seed(0)
    trainer.e.method.begin(trainer.ctx)
    losses, changes, before = [], 0, trainer.e.method.mask_changes()
    for step in range(STEPS):
        if step % trainer.ctx.steps_per_epoch == 0:
            trainer.ctx.epoch = 1 + step // trainer.ctx.steps_per_epoch
            trainer.e.method.on_epoch(trainer.ctx)
            order = trainer.e.data.order(0, trainer.ctx.epoch).split(8)
        trainer.net.train()
        trainer.step(order[step % trainer.ctx.steps_per_epoch])
        losses.append(trainer.e.task.metrics(trainer.sums)["loss"])
        trainer.sums = None
        trainer.ctx.step += 1
        changes += trainer.e.method.mask_changes() != before
        before = trainer.e.method.mask_changes()
    return losses, changes


def compare(method: str, folder: Path) -> None:
    eager, changes = trained(method, folder, compiled=False)
    assert counters["stats"]["unique_graphs"] == 0
    compiled, _ = trained(method, folder, compiled=True)
    assert max(abs(a - b) for a, b in zip(eager, compiled, strict=True)) <= 1e-4
    assert len(set(eager)) == STEPS
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert 1 <= counters["stats"]["unique_graphs"] <= 2
    if method in BUSY and method not in ("optg", "quantised", "gpo", "sparsevd"):
        assert changes >= (3 if method in OURS else 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_step_is_the_eager_one(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_: Callable[..., object] = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile_, backend="aot_eager"))
    compare(method, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler: g++")
@pytest.mark.parametrize("method", ["dense", "rigl", "acdc", "s_lats"])
def test_generated_code_trains_as_the_eager_one(method: str, tmp_path: Path) -> None:
    compare(method, tmp_path)
