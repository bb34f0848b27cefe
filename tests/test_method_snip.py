"""SNIP's scores against plain autograd, and gradients over training batches that leave no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from data.order import derive, epoch_order
from methods.allocation import kept_of
from methods.masks import digest
from methods.snip import SNIP
from runner.compose import compose
from runner.errors import Misuse
from runner.experiment import make
from runner.records import RunDirectory
from runner.trainer import Trainer

GIVEN = ["model.hidden=[20,10]", "dataset.train_subset=130", "schedule.batch_size=50", "schedule.epochs=1"]


def trainer(tmp_path: Path, *more: str) -> Trainer:
    return Trainer(make(compose([*GIVEN, *more])), RunDirectory(tmp_path))


def everything(t: Trainer) -> str:
    grads = {f"grad/{name}": p.grad for name, p in t.model.named_parameters() if p.grad is not None}
    return digest({**t.model.state_dict(), **grads, "torch": torch.get_rng_state(), "method": t.ctx.rng.get_state()})


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_the_mean_gradient_over_batches(batches: int, tmp_path: Path) -> None:
    t = trainer(tmp_path)
    order = epoch_order(130, 0, 0)
    sums: dict[str, Any] = {}
    for batch in order.split(50)[:batches]:
        images, labels = t.e.data.batch(batch, 0)
        names, parameters = zip(*t.model.named_parameters(), strict=True)
        grads = torch.autograd.grad(F.cross_entropy(t.model(images), labels), parameters)
        sums = {name: sums.get(name, 0) + grad / batches for name, grad in zip(names, grads, strict=True)}
    found = t.ctx.mean_grads(batches)
    assert found.keys() == sums.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, sums[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", ["model.batch_norm=all", "model=wrn_28_2"])
def test_it_leaves_no_trace(model: str, tmp_path: Path) -> None:
    wide = ["model.depth=10", "model.width=1", "model.dropout=0.5", "dataset=synthetic", "dataset.shape=[3,8,8]"]
    given = [model, *wide, "dataset.train_size=20"] if "wrn" in model else [model]
    t = Trainer(
        make(compose([*(GIVEN[2:] if "wrn" in model else GIVEN), *given, "schedule.batch_size=10"])),
        RunDirectory(tmp_path),
    )
    for parameter in t.model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = everything(t)
    first, second = t.ctx.mean_grads(2), t.ctx.mean_grads(2)
    assert everything(t) == before
    assert t.net.training
    assert digest(first) != digest({name: torch.zeros_like(grad) for name, grad in first.items()})
    if "wrn" not in model:  # dropout draws from what the generator is at
        assert digest(first) == digest(second)


def test_the_largest_saliencies_stay(tmp_path: Path) -> None:
    t = trainer(tmp_path, "method=snip", "method.sparsity=0.7", "method.batches=2", "schedule.lr=0")
    weights = {name: w.detach().clone() for name, w in t.e.method.weights.items()}
    grads = t.ctx.mean_grads(2)
    t.fit()
    saliency = torch.cat([(weights[name] * grads[name]).abs().flatten() for name in weights])
    kept = torch.cat([mask.flatten() for mask in t.e.method.masks().values()])
    assert int(kept.sum()) == kept_of(kept.numel(), 0.7)
    assert float(saliency[kept].min()) >= float(saliency[~kept].max())
    for name, mask in t.e.method.masks().items():
        assert torch.equal(t.model.state_dict()[name], torch.where(mask, weights[name], 0.0))


def test_scores_by_hand(bench: Any) -> None:
    weights = [torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[0.01, 10.0]])]
    b = bench(SNIP(sparsity=0.5), weights, begin=False)
    grads = [torch.tensor([[4.0, 1.0], [-0.1, -9.0]]), torch.tensor([[-50.0, 0.3]])]
    b.ctx.mean_grads = lambda batches: {"fc1.weight": grads[0].double(), "fc2.weight": grads[1].double()}
    b.method.begin(b.ctx)
    assert b.kept() == [[True, False, False, True], [False, True]]  # saliencies 4, 2, 0.3, 4.5; 0.5, 3


def test_a_weight_that_the_loss_does_not_reach_is_named(bench: Any) -> None:
    b = bench(SNIP(sparsity=0.5), [torch.ones(2, 2)], begin=False)
    b.ctx.mean_grads = lambda batches: {}
    with pytest.raises(ValueError, match=r"no gradient with respect to fc1\.weight; add it to keep_dense"):
        b.method.begin(b.ctx)


def test_methods_that_cannot_begin_say_so_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="method: a lottery ticket needs a parent run's weights"):
        trainer(tmp_path, "method=lottery", "start=null").fit()


def test_the_scores_have_an_order_of_their_own() -> None:
    assert not torch.equal(epoch_order(130, 0, 0), epoch_order(130, 0, 1))
    assert derive(0, "score", 0) != derive(0, "augment", 0, 0)
