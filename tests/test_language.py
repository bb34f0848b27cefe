"""Language modelling: losses by hand, the memory that training and evaluation carry, resumption, two ranks, the CLI."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.text import Segment
from runner.__main__ import main
from runner.compose import compose
from runner.execute import execute
from runner.experiment import make
from runner.gradients import mean_grads
from runner.language import LanguageModelling
from runner.records import RunDirectory
from runner.trainer import Trainer
from tests import streams
from tests.killing import outcome, run_and_die


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return streams.write(tmp_path_factory.mktemp("text"))


def trainer(root: Path, path: Path, *more: str) -> Trainer:
    return Trainer(make(compose(streams.overrides(root, *more))), RunDirectory(path))


class Counting(nn.Module):
    """Losses are the inputs, a thousandth of which the memory adds up, one number per stream."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor | None] = []

    def forward(self, inputs: Tensor, targets: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        self.given.append(memory)
        losses = inputs.double().masked_fill(targets < 0, 0.0)
        before = torch.zeros(1, len(inputs)) if memory is None else memory
        return losses, before + inputs.sum(1) / 1000


def segment(inputs: list[list[int]], targets: list[list[int]], stream: int = 0, begins: bool = False) -> Segment:
    return Segment(torch.tensor(inputs), torch.tensor(targets), stream, begins)


# The task


def test_loss_and_perplexity_by_hand() -> None:
    task, model = LanguageModelling(num_classes=10), Counting().eval()
    loss, sums = task.loss(model, segment([[1, 2, 9], [3, 9, 9]], [[0, 0, -1], [0, -1, -1]]))
    assert loss.item() == 2.0
    assert sums.tolist() == [3.0, 6.0]
    _, more = task.loss(model, segment([[4]], [[5]], stream=2))
    assert task.metrics(sums + more) == {"loss": 2.5, "perplexity": pytest.approx(math.exp(2.5))}
    assert task.metrics(torch.tensor([1.0, 1000.0])) == {"loss": 1000.0, "perplexity": math.inf}
    assert task.chance_loss == pytest.approx(math.log(10))
    empty, sums = task.loss(model, segment([[7]], [[-1]]))  # read to fill the memory, predicts nothing
    assert (empty.item(), sums.tolist()) == (0.0, [0.0, 0.0])


def test_streams_training_and_evaluation_have_a_memory_of_their_own() -> None:
    task, model = LanguageModelling(num_classes=10), Counting()
    task.loss(model, segment([[1]], [[1]], stream=0, begins=True))
    task.loss(model, segment([[2]], [[1]], stream=1, begins=True))
    model.eval()
    task.loss(model, segment([[5]], [[1]], stream=0, begins=True))
    task.loss(model, segment([[6]], [[1]], stream=0))
    model.train()
    task.loss(model, segment([[3]], [[1]], stream=0))
    task.loss(model, segment([[4]], [[1]], stream=1))
    task.loss(model, segment([[4]], [[1]], stream=1, begins=True))
    seen = [None if memory is None else round(1000 * memory.item()) for memory in model.given]
    assert seen == [None, None, None, 5, 1, 2, None]
    assert task.test_memory == {}  # takes no room while training
    state = task.state_dict()
    assert {stream: round(1000 * memory.item()) for stream, memory in state["memory"].items()} == {0: 4, 1: 4}
    again = LanguageModelling(num_classes=10)
    again.load_state_dict(state)
    assert again.state_dict() == state
    # Of a run resumed with other ranks, whose streams are dealt otherwise: there is none, rather than another's.
    task.loss(model, segment([[1], [1]], [[1], [1]], stream=0))
    assert model.given[-1] is None


# In the trainer


def test_the_trainer_reads_on_where_the_last_batch_ended(root: Path, tmp_path: Path) -> None:
    """The losses of an epoch are those of the streams read in one go, while the weights stand still."""
    t = trainer(root, tmp_path, "schedule.lr=0.0", "model.dropout=0.0", "model.memory=100", "model.test_memory=100",
                "schedule.lr_end=0.0", "schedule.epochs=1", "dataset.test_warmup=100")  # fmt: skip
    (line,) = t.fit()
    order = t.e.data.order(0, 1)[:4]
    turned = [(int(i) % 88) for i in order]
    text = t.e.data.train[:352].view(4, 88).long()  # type: ignore[attr-defined]
    text = torch.stack([row.roll(-turn) for row, turn in zip(text, turned, strict=True)])
    model = t.model.eval()
    losses, _ = model(text[:, :-1], text[:, 1:])
    assert losses.shape == (4, 87)
    assert line["train/loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    test = t.e.data.test.long()[None]  # type: ignore[attr-defined]
    losses, _ = model(test[:, :-1], test[:, 1:])
    assert line["test/loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert line["test/perplexity"] == pytest.approx(math.exp(line["test/loss"]))


def test_the_number_of_test_streams_changes_nothing_when_all_have_a_full_memory(root: Path, tmp_path: Path) -> None:
    """Read one by one, tokens see as much of the past in every stream, as far as the memory of two layers goes."""
    found = []
    for rows in (1, 2, 5):
        t = trainer(root, tmp_path / str(rows), f"dataset.test_rows={rows}", "dataset.test_length=1",
                    "dataset.test_warmup=12", "model.test_memory=6")  # fmt: skip
        found.append(t.evaluate()["loss"])
    assert found[1:] == [pytest.approx(found[0], rel=1e-6)] * 2


def test_scoring_batches_leave_the_memory_as_it_was(root: Path, tmp_path: Path) -> None:
    t = trainer(root, tmp_path)
    t.model.train()
    for indices in t.e.data.order(0, 1).split(4)[:2]:
        t.step(indices)
    before = {stream: memory.clone() for stream, memory in t.e.task.state_dict()["memory"].items()}
    assert mean_grads(t, 3)
    after = t.e.task.state_dict()["memory"]
    assert after.keys() == before.keys() == {0}
    assert after[0].equal(before[0])


@pytest.mark.parametrize(
    "more",
    [
        ("schedule.accumulate=2", "method=set", "method.period=2"),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("precision=bf16",), marks=pytest.mark.slow),
        pytest.param(("precision=fp16",), marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_in_mid_epoch_resumes_bit_for_bit(root: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    short = ("schedule.epochs=2", "dataset.length=22")  # four steps an epoch
    given = streams.overrides(root, *short, *more, "trainer.checkpoint_seconds=0")
    whole, killed = (compose([*given, f"runs={tmp_path / name}"]) for name in ("whole", "killed"))
    execute(whole, [])
    for place, at in (("before a step", 3), ("after a step", 4)):  # after two of them, and in the second epoch
        assert run_and_die(killed, place, at) == -signal.SIGKILL
    execute(killed, [])
    paths = [next((tmp_path / name).rglob("seed0")) for name in ("whole", "killed")]
    assert outcome(paths[0]) == outcome(paths[1])


def test_a_checkpoint_holds_the_memory_of_the_training_streams(root: Path, tmp_path: Path) -> None:
    from runner import snapshot

    t = trainer(root, tmp_path, "schedule.accumulate=2")
    t.model.train()
    t.step(t.e.data.order(0, 1)[:4])
    state = snapshot.take(t)
    memory = state["task"]["memory"]
    assert {stream: tuple(each.shape) for stream, each in memory.items()} == dict.fromkeys((0, 2), (2, 2, 8, 16))
    other = trainer(root, tmp_path, "schedule.accumulate=2")
    snapshot.restore(other, state)
    assert all(other.e.task.state_dict()["memory"][stream].equal(memory[stream]) for stream in memory)


# The command line


def test_a_tiny_language_model_learns_end_to_end(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = streams.overrides(
        root, "schedule.epochs=6", "method=static", "method.sparsity=0.5", "method.allocation=uniform"
    )
    assert main(given) == 0
    assert "test/perplexity" in capsys.readouterr().out
    (path,) = Path("runs").rglob("summary.json")
    summary: dict[str, Any] = json.loads(path.read_text())
    final, first = summary["final"], json.loads((path.parent / "metrics.jsonl").read_text().splitlines()[0])
    assert final["test/perplexity"] < min(first["test/perplexity"], 10) < 13  # better than a guess among 13 words
    assert final["mask/sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert "embedding.tables.0.weight" not in summary["layers"]
    assert summary["best"]["test/perplexity"] == min(
        json.loads(line)["test/perplexity"] for line in (path.parent / "metrics.jsonl").read_text().splitlines()
    )
