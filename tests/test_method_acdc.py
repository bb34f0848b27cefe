"""AC/DC against its algorithm box: masks, momentum, patterns, embeddings, and its two kept checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from methods.acdc import ACDC
from methods.allocation import kept_of
from methods.base import Context
from methods.ranking import top_of_groups
from runner import checkpoint
from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make, validate
from runner.identity import key, run_dir
from runner.records import RunDirectory, read_metrics
from runner.trainer import Interrupted, Trainer

PHASES = [1, 1, 2, 2]
# 6 epochs of 3 steps on the digits: dense, sparse, dense, dense, sparse, sparse.
RUN = ["method=acdc", f"method.phase_epochs={PHASES}", "schedule.epochs=6", "dataset=digits"]
RUN += ["dataset.train_subset=150", "schedule.batch_size=50", "model.hidden=[20,10]", "schedule.lr=0.05"]


def test_the_algorithm_box_by_hand(bench: Any, gaussian: Any) -> None:
    """Masked Nesterov momentum on one weight at a time, in the support of the largest, all of them and the largest."""
    weights = gaussian([(3, 4), (2, 3)], 0)
    method = ACDC(sparsity=0.6, phase_epochs=PHASES)
    b = bench(method, weights, lr=0.1, momentum=0.9, nesterov=True, steps_per_epoch=3, epochs=6)
    w = [v for t in weights for v in t.flatten().tolist()]
    buffer = [0.0] * 18
    keep = kept_of(18, 0.6)
    assert keep == 7
    support, supports = set(range(18)), []
    for step, phase in enumerate("dddsssddddddssssss"):
        if step in (3, 12):
            support = set(sorted(range(18), key=lambda i: -abs(w[i]))[:keep])
            w = [v if i in support else 0.0 for i, v in enumerate(w)]
            supports.append(support)
        if step == 6:
            support, buffer = set(range(18)), [0.0] * 18
        grads = gaussian([(3, 4), (2, 3)], 100 + step)
        g = [v for t in grads for v in t.flatten().tolist()]
        for i in range(18):
            gi = g[i] if i in support else 0.0
            buffer[i] = 0.9 * buffer[i] + gi
            w[i] = w[i] - 0.1 * (gi + 0.9 * buffer[i]) if i in support else 0.0
        b.step(grads)
        assert [v for layer in b.values() for v in layer] == pytest.approx(w, abs=1e-12), step
        momenta = [v for w in b.weights for v in b.optimizer.state[w]["momentum_buffer"].flatten().tolist()]
        assert momenta == pytest.approx(buffer, abs=1e-12), step  # none builds up behind a mask
        assert sum(b.counts()) == (keep if phase == "s" else 18)
        assert method.keeps() == ("sparse" if phase == "s" else "dense")
    assert supports[0] != supports[1]


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_momentum_is_really_zero_when_a_dense_phase_begins(kind: str, tmp_path: Path) -> None:
    """Every parameter's, biases included, where the trainer's gradients have been set to None as always."""
    optimizer = {"SGD": [], "AdamW": ["schedule.optimizer={_target_: torch.optim.AdamW}"]}[kind]
    config = compose(RUN)
    if optimizer:
        config["schedule"]["optimizer"] = {"_target_": "torch.optim.AdamW"}
    t = Trainer(make(config), RunDirectory(tmp_path))
    name = {"SGD": "momentum_buffer", "AdamW": "exp_avg"}[kind]
    seen = {}
    real = ACDC.on_epoch

    def watched(method: ACDC, ctx: Context) -> None:
        before = {p: t.optimizer.state[p][name].abs().sum().item() for p in t.optimizer.state}
        scale = {p: t.optimizer.state[p]["exp_avg_sq"].clone() for p in t.optimizer.state if kind == "AdamW"}
        real(method, ctx)
        after = {p: t.optimizer.state[p][name].abs().sum().item() for p in t.optimizer.state}
        assert all(torch.equal(t.optimizer.state[p]["exp_avg_sq"], each) for p, each in scale.items())
        seen[ctx.epoch] = (before, after)

    t.e.method.on_epoch = watched.__get__(t.e.method)  # type: ignore[method-assign]
    t.fit()
    everyone = set(t.model.parameters())
    before, after = seen[3]  # the second dense phase
    assert set(after) == everyone and all(before.values()) and not any(after.values())
    for epoch in (2, 4, 5, 6):
        before, after = seen[epoch]
        assert before == after and any(before.values())


def test_the_momentum_can_be_left(bench: Any, gaussian: Any) -> None:
    method = ACDC(sparsity=0.5, phase_epochs=PHASES, reset_momentum=False)
    b = bench(method, gaussian([(2, 2)], 0), momentum=0.9, steps_per_epoch=1, epochs=6)
    for step in range(3):
        b.step(gaussian([(2, 2)], step + 1))
    (state,) = b.optimizer.state.values()
    assert state["momentum_buffer"].count_nonzero() == 4


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
def test_survivors_are_the_largest_and_exact(allocation: str, bench: Any, gaussian: Any) -> None:
    weights = gaussian([(7, 5), (3, 11)], 1)
    b = bench(ACDC(sparsity=0.7, allocation=allocation, phase_epochs=[0, 6]), weights, epochs=6)
    b.method.on_epoch(b.ctx)
    assert sum(b.counts()) == kept_of(68, 0.7)
    if allocation == "uniform":
        assert abs(b.counts()[0] - 0.3 * 35) < 1
    magnitudes = [w.abs().flatten() for w in weights]
    kept = [torch.tensor(k) for k in b.kept()]
    if allocation == "global":
        magnitudes, kept = [torch.cat(magnitudes)], [torch.cat(kept)]
    for m, k in zip(magnitudes, kept, strict=True):
        assert float(m[k].min()) > float(m[~k].max())


def test_patterns_by_hand() -> None:
    """Four consecutive input channels share two places; ties go to the lower index."""
    linear = torch.tensor([[1.0, 5.0, 3.0, 4.0, 2.0, 2.0, 2.0, 2.0]])
    assert top_of_groups(linear, 2, 4).tolist() == [False, True, False, True, True, True, False, False]
    conv = torch.zeros(1, 4, 1, 2)  # (out, in, height, width)
    conv[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    conv[0, :, 0, 1] = torch.tensor([8.0, 7.0, 6.0, 5.0])
    kept = top_of_groups(conv, 2, 4).view(conv.shape)
    assert kept[0, :, 0, 0].tolist() == [False, False, True, True]
    assert kept[0, :, 0, 1].tolist() == [True, True, False, False]
    stem = torch.arange(24.0).view(2, 3, 2, 2)  # 3 input channels: groups run on into the next position
    by_hand = stem.permute(0, 2, 3, 1).reshape(-1, 4)
    expected = torch.tensor([[False, False, False, True]]).expand(6, 4).clone()
    for row, group in enumerate(by_hand):
        expected[row] = group == group.max()
    assert torch.equal(top_of_groups(stem, 1, 4), expected.view(2, 2, 2, 3).permute(0, 3, 1, 2).reshape(-1))
    with pytest.raises(ValueError, match="9 weights do not divide into groups of 4"):
        top_of_groups(torch.zeros(3, 3), 2, 4)


def test_a_pattern_leaves_its_share_in_every_group(bench: Any, gaussian: Any) -> None:
    b = bench(ACDC(sparsity=0.5, allocation="2:4", phase_epochs=[0, 6]), gaussian([(3, 8), (2, 4)], 2), epochs=6)
    b.method.on_epoch(b.ctx)
    for mask in b.method.masks().values():
        assert mask.view(-1, 4).sum(1).tolist() == [2] * (mask.numel() // 4)
    with pytest.raises(
        ValueError, match=r"fc1\.weight has 6 weights, which do not divide into groups of 4; add its layer"
    ):
        bench(ACDC(sparsity=0.5, allocation="2:4", phase_epochs=[0, 6]), gaussian([(3, 2)], 2))


class Language(nn.Module):
    """An embedding, a linear layer, and a last one that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 6)
        self.layer = nn.Linear(6, 6)
        self.last = nn.Linear(6, 10)
        self.last.weight = self.table.weight


def test_embeddings_have_a_sparsity_of_their_own() -> None:
    method = ACDC(sparsity=0.75, embedding_sparsity=0.5, phase_epochs=[0, 4])
    model = method.setup(Language())
    assert list(method.effective()) == ["table.weight", "layer.weight"]  # the shared weight once
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.on_epoch(Context(optimizer, torch.Generator(), total_steps=8, steps_per_epoch=2))
    assert {name: int(mask.sum()) for name, mask in method.masks().items()} == {"table.weight": 30, "layer.weight": 9}
    for name, weight in model.named_parameters():
        if name in method.masks():
            kept = method.masks()[name]
            assert not weight.detach()[~kept].any() and weight.detach()[kept].all()
    plain = ACDC(sparsity=0.75, keep_dense=["last"], phase_epochs=[0, 4])
    plain.setup(Language())
    assert list(plain.effective()) == ["layer.weight"]
    with pytest.raises(ValueError, match="the model has no embedding layer that may be pruned"):
        ACDC(sparsity=0.5, embedding_sparsity=0.5).setup(nn.Sequential(nn.Linear(2, 2)))


def run(root: Path, *more: str) -> tuple[dict[str, Any], Path]:
    config = compose([*RUN, f"runs={root}", *more])
    return execute(config, []), run_dir(root, config)


def test_the_best_dense_and_the_best_sparse_epoch_are_kept(tmp_path: Path) -> None:
    summary, path = run(tmp_path)
    lines, _ = read_metrics(path / "metrics.jsonl")
    by_name = {"dense": [lines[i] for i in (0, 2, 3)], "sparse": [lines[i] for i in (1, 4, 5)]}
    kept = checkpoint.read(path / "checkpoints" / checkpoint.LAST)["kept"]
    assert set(kept) == {"dense", "sparse"}
    for name, candidates in by_name.items():
        best = max(candidates, key=lambda line: line["test/accuracy"])
        assert summary[name]["epoch"] == best["epoch"] == kept[name]["line"]["epoch"]
        assert summary[name]["test/accuracy"] == best["test/accuracy"]
        t = Trainer(make(compose(RUN)), RunDirectory(tmp_path / "none"))
        t.model.load_state_dict(kept[name]["model"])
        assert t.evaluate()["loss"] == best["test/loss"]
        share = 1 - sum(int(w.count_nonzero()) for w in t.e.method.effective().values()) / 1590
        assert (share > 0.89) == (name == "sparse")
    assert summary["final"]["mask/sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_dense_fine_tuning_begins_at_the_best_dense_epoch(tmp_path: Path) -> None:
    """At learning rate 0 it stays there; its epochs are those of the last phase, at that phase's learning rates."""
    start = f'start.parent=["method=acdc","method.phase_epochs={PHASES}","schedule.epochs=6","schedule.lr=0.05"]'
    start = start.replace("schedule.lr=0.05", "schedule.batch_size=50")
    shared = [*RUN[3:6], "model.hidden=[20,10]", f"runs={tmp_path}"]
    config = compose(["method=acdc_dense", start, "schedule.epochs=2", "schedule.lr=0", *shared])
    assert config["start"]["checkpoint"] == "dense"
    summary = execute(config, [])
    (parent,) = tmp_path.glob("*/*/acdc/*/seed0/summary.json")
    dense = json.loads(parent.read_text())["dense"]
    assert summary["final"]["test/loss"] == dense["test/loss"]
    assert summary["final"]["mask/sparsity"] == 0 and summary["epochs"] == 2


def test_the_learning_rates_of_dense_fine_tuning_are_those_of_the_last_phase() -> None:
    for experiment, epochs, last in (("imagenet", 100, 15), ("cifar100", 200, 30)):
        whole = validate(compose([f"experiment=acdc/{experiment}", "method=acdc"]))[1]
        config = compose([f"experiment=acdc/{experiment}", "method=acdc_dense", "method.keep_dense=[fc]"])
        part = validate(config)[1]
        assert part.epochs == last and config["start"]["parent"]["schedule"]["epochs"] == epochs
        rates = part.learning_rate()
        for position in (0.0, 3.25, last - 0.01):
            at = epochs - last + position
            assert rates.at(position) == pytest.approx(whole.learning_rate().at(at), rel=1e-12)
        assert config["start"]["parent"]["method"]["keep_dense"] == ["fc"]
    config = compose(["experiment=acdc/imagenet", "method=acdc_dense", "method.epochs=150"])
    assert config["start"]["parent"]["schedule"]["epochs"] == 150 and config["schedule"]["lr_from_epoch"] == 135


def test_a_killed_run_keeps_the_same(tmp_path: Path) -> None:
    """Saved in the middle of every phase, and resumed."""
    whole, _ = run(tmp_path / "whole")
    config = compose([*RUN, f"runs={tmp_path}/parts"])
    path = run_dir(config["runs"], config)
    for halt in (2, 4, 8, 11, 14, 17, None):
        t = Trainer(make(config), RunDirectory(path))
        t.stop = lambda t=t, halt=halt: t.ctx.step == halt  # type: ignore[misc]
        if halt is None:
            t.fit()
        else:
            with pytest.raises(Interrupted):
                t.fit()
    for name, entry in t.kept.entries.items():
        assert {k: v for k, v in entry["line"].items() if not k.startswith("time/")} == {
            k: v for k, v in whole[name].items() if not k.startswith("time/")
        }
    (straight,) = (tmp_path / "whole").glob("*/*/*/*/seed0/checkpoints/last.pt")
    expected = checkpoint.read(straight)["kept"]
    for name, entry in t.kept.entries.items():
        for weight, value in expected[name]["model"].items():
            assert torch.equal(entry["model"][weight], value), (name, weight)


def test_a_checkpoint_that_nobody_keeps_is_refused() -> None:
    with pytest.raises(Misuse, match=r"method acdc keeps: last, dense, sparse\. Did you mean 'dense'\?"):
        validate(compose(["start={parent: ['method=acdc'], checkpoint: dens}"]))
    with pytest.raises(Misuse, match=r"should be one that method dense keeps: last\."):
        validate(compose(["start={parent: ['method=dense'], checkpoint: dense}"]))


def test_a_parents_mask_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"AC/DC chooses its masks when a sparse phase begins; start\.take should be weights"
    ):
        ACDC(sparsity=0.5).adopt({}, {})


def test_str_runs_its_own_papers_recipe() -> None:
    """The very run that LATS compares with: one key, whichever paper's table asks for it."""
    for model in ("resnet50", "mobilenet_v1"):
        ours, theirs = (compose([f"experiment={p}/imagenet", f"model={model}", "method=str"]) for p in ("acdc", "lats"))
        assert key(ours) == key(theirs), model
        host = compose(["experiment=acdc/imagenet", f"model={model}", "method=acdc"])
        assert ours["task"]["label_smoothing"] == 0.1 and host["task"]["label_smoothing"] == 0.0
        assert ours["schedule"]["l2"] != host["schedule"]["l2"]
