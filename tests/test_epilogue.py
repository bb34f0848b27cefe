"""What a run is asked when it has ended: in full precision, and beside its partner; by hand and by plain PyTorch."""

from __future__ import annotations

import json
import logging
import math
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Method
from runner import checkpoint
from runner.compose import compose
from runner.epilogue import compared, epilogue, pair
from runner.execute import execute
from runner.experiment import make, make_model
from runner.identity import key, parent_config, run_dir
from runner.language import LanguageModelling
from runner.repeat import evaluate, finished
from runner.world import World
from tests.killing import outcome, run_and_die
from tests.test_trainer import TINY

STAGE = (
    "method=compressed", "method.iterations=2", "method.every_epochs=1", "method.sparsity=0.9",
    "start.parent=['method=dense','schedule.epochs=6']",
)  # fmt: skip
PHASES = ("warmup_epochs", "sparse_epochs", "dense_epochs", "last_dense_epochs")
DENSE = (
    "method=acdc_dense", "schedule.epochs=2", "method.epochs=6", "method.last_sparse_epochs=2", "method.sparsity=0.9",
    *(f"method.{name}=1" for name in PHASES),
)  # fmt: skip
SPARSEVD = ("method.log_alpha_threshold=0", "method.initial_variance=5e-3", "schedule.epochs=12")


def run(root: Path, *more: str) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """(configuration, summary, run directory) of a run on 512 digits."""
    given = [*TINY, *more, f"runs={root}", "trainer.eval_batch_size=77"]
    config = compose(given)
    return config, execute(config, given), run_dir(root, config)


def logits_of(config: dict[str, Any], path: Path, prepared: Any = None) -> tuple[Tensor, Tensor]:
    """(logits, labels) of the whole test set at once, by the weights in the last checkpoint of a LeNet's run."""
    e = make(config)
    state = checkpoint.read(path / "checkpoints" / checkpoint.LAST)["model"]
    x, labels = (torch.cat(parts) for parts in zip(*e.data.test_batches(1000), strict=True))
    h = x.flatten(1)
    for i in (1, 2, 3):
        weight = state[f"fc{i}.weight"] if prepared is None else prepared(state, f"fc{i}")
        h = F.linear(h, weight, state[f"fc{i}.bias"])
        h = h.relu() if i < 3 else h
    return h, labels


def check(pair: dict[str, Any], dense: Tensor, sparse: Tensor) -> None:
    """`pair` against plain formulas, sample by sample, in float64."""
    one_way = other_way = agree = 0.0
    for a, b in zip(dense.double(), sparse.double(), strict=True):
        p, q = (each.exp() / each.exp().sum() for each in (a, b))
        one_way -= sum(x * math.log(y) for x, y in zip(p.tolist(), q.tolist(), strict=True))
        other_way -= sum(y * math.log(x) for x, y in zip(p.tolist(), q.tolist(), strict=True))
        agree += int(p.argmax()) == int(q.argmax())
    n = len(dense)
    assert pair["samples"] == n == 360
    assert pair["agreement"] == 100 * agree / n
    assert pair["cross_entropy"] == pytest.approx(one_way / n, rel=1e-5)
    assert pair["cross_entropy_reversed"] == pytest.approx(other_way / n, rel=1e-5)
    assert abs(one_way / n / (other_way / n) - 1) > 1e-3, "the two directions should be told apart"
    assert 0 < agree < n, "some samples should be of each kind"


def test_a_pair_of_outputs_by_hand() -> None:
    third = math.log(3)
    dense = torch.tensor([[third, 0.0], [0.0, third], [0.0, 0.0]])  # p = (3/4, 1/4), (1/4, 3/4), (1/2, 1/2)
    sparse = torch.tensor([[0.0, 0.0], [third, 0.0], [5.0, 5.0]])  # q = (1/2, 1/2), (3/4, 1/4), (1/2, 1/2)
    ln2, ln4 = math.log(2), math.log(4)
    both = 0.25 * (ln4 - third) + 0.75 * ln4  # of the second sample, either way
    a_quarter = 0.5 * (ln4 - third) + 0.5 * ln4
    n, agree, entropy, exchanged = compared(dense, sparse).tolist()
    assert (n, agree) == (3, 2)  # of equal logits the first class counts
    assert entropy == pytest.approx(ln2 + both + ln2, rel=1e-6)
    assert exchanged == pytest.approx(a_quarter + both + ln2, rel=1e-6)


def test_outputs_of_any_size_have_a_cross_entropy() -> None:
    """No probability is rounded to 0 before its logarithm; the logits of a reduced precision are widened."""
    far = torch.tensor([[800.0, 0.0, 0.0]], dtype=torch.bfloat16)
    assert compared(far, -far).tolist() == pytest.approx([1, 0, 800 + math.log(2), 800])


def test_gradual_pruning_meets_the_trained_network_that_it_began_with(tmp_path: Path) -> None:
    config, summary, path = run(tmp_path, *STAGE, "schedule.lr=0.3")
    above = parent_config(config)
    assert above is not None and summary["pair"]["partner"] == key(above)
    sparse, labels = logits_of(config, path)
    dense, _ = logits_of(above, run_dir(tmp_path, above))
    check(summary["pair"], dense, sparse)
    accuracy = 100 * (sparse.argmax(1) == labels).double().mean().item()
    assert summary["final"]["test/accuracy"] == pytest.approx(accuracy)
    assert json.loads((path / "summary.json").read_text())["pair"] == summary["pair"]


def test_a_fine_tuned_dense_network_meets_the_sparse_one_not_what_it_began_with(tmp_path: Path) -> None:
    config, summary, path = run(tmp_path, *DENSE)
    above = parent_config(config)
    assert above is not None and config["start"]["checkpoint"] == "dense"
    dense, _ = logits_of(config, path)
    sparse, _ = logits_of(above, run_dir(tmp_path, above))
    check(summary["pair"], dense, sparse)


def test_sparse_variational_dropout_meets_itself_unpruned(tmp_path: Path) -> None:
    config, summary, path = run(tmp_path, "method=sparsevd", *SPARSEVD)
    assert summary["pair"]["partner"] == "unpruned"

    def pruned(state: dict[str, Tensor], layer: str) -> Tensor:
        theta, log_sigma2 = state[f"{layer}.weight"], state[f"{layer}.log_sigma2"]
        return theta * (log_sigma2 - (theta.square() + 1e-8).log() < 0)

    check(summary["pair"], logits_of(config, path)[0], logits_of(config, path, pruned)[0])


def test_of_two_networks_as_dense_as_each_other_the_parent_is_the_target(tmp_path: Path) -> None:
    start = "start={parent: ['method=dense', 'schedule.epochs=1'], checkpoint: last, take: weights}"
    config, summary, path = run(tmp_path, start)
    above = parent_config(config)
    assert above is not None
    check(summary["pair"], logits_of(above, run_dir(tmp_path, above))[0], logits_of(config, path)[0])


def test_a_run_without_a_partner_has_no_pair(tmp_path: Path) -> None:
    _, summary, _ = run(tmp_path, "method=static")
    assert not {"pair", "fp32"} & set(summary)
    other = "start={parent: ['method=dense', 'dataset.train_subset=256'], checkpoint: last, take: weights}"
    assert "pair" not in run(tmp_path, other)[1], "networks of different data are no pair"
    diverged = run(tmp_path, *STAGE, "schedule.lr=1e30", "start.parent=['method=dense','schedule.lr=0.1']")[1]
    assert diverged["status"] == "diverged" and "pair" not in diverged


def test_language_models_are_not_compared() -> None:
    assert LanguageModelling(num_classes=7).outputs is None


def test_a_parent_whose_weights_have_gone_meanwhile_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner import execute as executing

    def without(trainer: Any, config: Any, parent: Path | None) -> Any:
        for each in (parent / "checkpoints").iterdir() if parent is not None else ():
            each.unlink()
        return epilogue(trainer, config, parent)

    monkeypatch.setattr(executing, "epilogue", without)
    with caplog.at_level(logging.WARNING):
        _, summary, _ = run(tmp_path, *STAGE)
    assert summary["status"] == "completed" and "pair" not in summary
    assert "has no readable checkpoint any more, so that nothing is compared with it" in caplog.text


@pytest.mark.parametrize("given", [STAGE, ("method=sparsevd", "precision=bf16")], ids=["stage", "unpruned"])
def test_a_run_that_is_killed_before_its_summary_says_the_same(tmp_path: Path, given: tuple[str, ...]) -> None:
    _, _, whole = run(tmp_path / "whole", *given)
    config, _, path = run(tmp_path / "killed", *given)
    (path / "summary.json").unlink()  # as it is between the last checkpoint and the summary
    run(tmp_path / "killed", *given)
    assert outcome(path) == outcome(whole)
    config, _, path = run(tmp_path / "earlier", "method=dense")  # the stage's parent, where it has one
    config = compose([*TINY, *given, f"runs={tmp_path / 'earlier'}", "trainer.eval_batch_size=77"])
    assert run_and_die(config, "before a step", 13) == -signal.SIGKILL
    execute(config, [])
    assert outcome(run_dir(tmp_path / "earlier", config)) == outcome(whole)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_network_trained_in_reduced_precision_is_evaluated_in_full(tmp_path: Path, precision: str) -> None:
    config, summary, path = run(tmp_path, f"precision={precision}")
    logits, labels = logits_of(config, path)
    assert summary["fp32"]["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert summary["fp32"]["test/accuracy"] == 100 * (logits.argmax(1) == labels).double().mean().item()
    assert summary["final"]["test/loss"] != pytest.approx(summary["fp32"]["test/loss"], rel=1e-6)


def test_full_precision_means_no_tf32_and_leaves_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the flags alone: TF32 itself needs a GPU."""
    from runner.trainer import Trainer

    config, _, path = run(tmp_path)
    e = make(config)
    e.precision = "tf32"
    seen: list[tuple[str, bool]] = []

    def look(self: Any, probe: Any = None, full: bool = False) -> dict[str, float]:
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return {"accuracy": 1.0}

    from runner.records import RunDirectory

    monkeypatch.setattr(Trainer, "evaluate", look)
    assert epilogue(Trainer(e, RunDirectory(path)), config, None) == {"fp32": {"test/accuracy": 1.0}}
    assert seen == [("highest", False)]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)


def test_a_finished_run_is_asked_again(tmp_path: Path) -> None:
    config, summary, path = run(tmp_path, *STAGE, "precision=bf16")
    found = evaluate(path, {**config, "runs": str(tmp_path / "elsewhere")}, summary["steps"])
    for part, names in (("pair", ("agreement", "cross_entropy", "samples")), ("fp32", ("test/accuracy", "test/loss"))):
        for name in names:
            assert found[f"{part}:{name}"] == summary[part][name]


def test_a_partner_is_built_without_a_trace_in_the_run(tmp_path: Path) -> None:
    """`make_model` takes its weights from torch's generator; a stage's own are its parent's."""
    config, _, _ = run(tmp_path, *STAGE)
    e = make(config)
    torch.manual_seed(3)
    first = make_model(config, e.data, e.device)
    torch.manual_seed(3)
    second = make_model(config, e.data, e.device)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert Method().unpruned() is None


@dataclass
class Part(World):
    """One of several ranks, which keeps the sums that it would add to the others'."""

    sums: list[Tensor] = field(default_factory=list)

    def sum(self, tensor: Tensor | None) -> Tensor:
        assert tensor is not None
        self.sums.append(tensor)
        return tensor


def test_ranks_share_the_samples_and_count_each_once(tmp_path: Path) -> None:
    """Five batches of 360 samples: rank 0 of two has three of them, rank 1 the others."""
    config, summary, path = run(tmp_path, *DENSE)
    above = parent_config(config)
    assert above is not None
    parts = [Part(rank=rank, size=2) for rank in range(2)]
    for part in parts:
        trainer = finished(path, config, summary["steps"])
        trainer.world = part
        pair(trainer, config, run_dir(tmp_path, above))
    one, other = (part.sums[0] for part in parts)
    assert (one[0], other[0]) == (3 * 77 - (5 * 77 - 360), 2 * 77)
    n, agree, entropy, exchanged = (one + other).tolist()
    assert n == 360 and summary["pair"]["agreement"] == 100 * agree / n
    assert summary["pair"]["cross_entropy"] == pytest.approx(entropy / n, rel=1e-12)
    assert summary["pair"]["cross_entropy_reversed"] == pytest.approx(exchanged / n, rel=1e-12)
