"""The trainer, stages and the run directory: what a kill, a rerun, a failure and a second process meet."""

import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from methods.masks import digest
from runner import checkpoint
from runner.compose import CONF, compose
from runner.errors import Misuse
from runner.execute import ParentFailed, execute
from runner.experiment import make
from runner.identity import run_dir
from runner.records import RunDirectory, is_held, read_metrics, write_atomic
from runner.trainer import Trainer
from tests.killing import outcome

TINY = ["model.hidden=[24,12]", "schedule.epochs=4", "schedule.batch_size=128", "dataset.train_subset=512"]


def run(tmp_path: Path, *overrides: str) -> tuple[dict[str, Any], Path]:
    given = [*TINY, *overrides, f"runs={tmp_path}"]
    config = compose(given)
    return execute(config, given), run_dir(tmp_path, config)


def test_an_epoch_by_hand(tmp_path: Path) -> None:
    """The whole loop restated in plain PyTorch: order, normalisation, L1, weight decay, Nesterov, learning rate."""
    given = [*TINY, "schedule.l1=0.003", "schedule.l2=0.01", "schedule.optimizer.fused=false", "seed=5",
             'schedule.lr="1:2 -> 0.1, 3:4 -> 0.01"', f"runs={tmp_path}"]  # fmt: skip
    config = compose(given)
    experiment = make(config)
    start = {k: v.clone() for k, v in experiment.model.state_dict().items()}
    execute(config, given)
    state = checkpoint.read(run_dir(tmp_path, config) / "checkpoints" / checkpoint.LAST)

    from sklearn.datasets import load_digits

    from data.images import proportional_part
    from data.order import derive

    bunch = load_digits()
    train = torch.tensor([i for i in range(len(bunch.target)) if i % 5])
    train = train[proportional_part(torch.tensor(bunch.target)[train], 512)]
    x = (torch.tensor(bunch.images[train], dtype=torch.float32).flatten(1) - 0.3053 * 16) / (0.3760 * 16)
    y = torch.tensor(bunch.target[train])
    weights = {name: value.clone().requires_grad_() for name, value in start.items()}
    momentum = {name: torch.zeros_like(value) for name, value in weights.items()}
    for epoch in range(1, 5):
        order = torch.randperm(512, generator=torch.Generator().manual_seed(derive(5, "order", epoch)))
        for batch in order.split(128):
            h = x[batch]
            for i in (1, 2, 3):
                h = F.linear(h, weights[f"fc{i}.weight"], weights[f"fc{i}.bias"])
                h = h.relu() if i < 3 else h
            grads = torch.autograd.grad(F.cross_entropy(h, y[batch]), list(weights.values()))
            with torch.no_grad():
                for (name, w), g in zip(weights.items(), grads, strict=True):
                    g = g + 0.003 * w.sign() * name.endswith("weight") + 0.01 * w
                    momentum[name] = 0.9 * momentum[name] + g
                    w -= (0.1 if epoch <= 2 else 0.01) * (g + 0.9 * momentum[name])
    for name, w in weights.items():
        torch.testing.assert_close(state["model"][name], w.detach(), rtol=1e-4, atol=1e-6)


def test_evaluation_counts_every_sample_once(tmp_path: Path) -> None:
    summary, path = run(tmp_path, "trainer.eval_batch_size=7")
    config = compose([*TINY, f"runs={tmp_path}"])
    experiment = make(config)
    experiment.model.load_state_dict(checkpoint.read(path / "checkpoints" / checkpoint.LAST)["model"])
    experiment.model.eval()
    images, labels = experiment.data.test
    with torch.no_grad():
        logits = experiment.model((images.float() - 0.3053 * 16) / (0.3760 * 16))
    assert summary["final"]["test/accuracy"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert summary["final"]["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert len(labels) == 360


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    whole, _ = run(tmp_path)
    parts, _ = run(tmp_path, "schedule.accumulate=3")
    assert parts["key"] != whole["key"]
    assert parts["final"]["train/loss"] == pytest.approx(whole["final"]["train/loss"], rel=1e-4)


def test_a_completed_run_is_not_repeated(tmp_path: Path) -> None:
    first, path = run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    second, _ = run(tmp_path)
    assert second == json.loads(json.dumps(first)) | {"schema": 1}
    assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}


def test_a_signal_saves_and_the_exit_code_says_requeue_me(tmp_path: Path) -> None:
    given = [*TINY, "schedule.epochs=4000", f"runs={tmp_path}"]
    child = subprocess.Popen(
        [sys.executable, "-m", "runner", *given], cwd=CONF.parent, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    path = Path(child.stdout.readline().strip())
    child.stdout.readline()  # one epoch has passed
    assert is_held(path)
    child.send_signal(signal.SIGTERM)
    rest = child.communicate(timeout=60)[0]
    assert child.returncode == 75
    assert "interrupted and saved" in rest
    assert not is_held(path)
    assert not (path / "summary.json").exists()
    state = checkpoint.load(path / "checkpoints")
    assert state is not None and state["position"]["step"] > 0


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save({"step": 1}, tmp_path)
    checkpoint.save({"step": 2}, tmp_path)
    blob = bytearray((tmp_path / checkpoint.LAST).read_bytes())
    blob[len(blob) // 2] ^= 1
    (tmp_path / checkpoint.LAST).write_bytes(bytes(blob))
    assert checkpoint.load(tmp_path) == {"step": 1}
    assert "is damaged" in caplog.text
    (tmp_path / checkpoint.PREVIOUS).write_bytes(b"torn")
    assert checkpoint.load(tmp_path) is None


def test_checkpoints_are_data_never_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    checkpoint.save({"x": Evil()}, tmp_path)
    with pytest.raises(Misuse, match=r"asks for \w+\.system, and nothing of it was run"):
        checkpoint.load(tmp_path)


def test_two_processes_cannot_hold_one_directory(tmp_path: Path) -> None:
    config = compose([*TINY, f"runs={tmp_path}"])
    directory = RunDirectory(run_dir(tmp_path, config))
    with directory.held():
        assert is_held(directory.path)
        with pytest.raises(Misuse, match="another process is running"):
            execute(config, [])
    assert not is_held(directory.path)


def test_metrics_beyond_the_checkpoint_and_a_torn_line_are_cut(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for step in (10, 20, 30):
        directory.append_metrics({"epoch": step // 10, "step": step, "train/loss": math.nan if step == 20 else 0.0})
    with open(directory.metrics_path, "a") as file:
        file.write('{"epoch": 4, "st')
    lines, problems = read_metrics(directory.metrics_path)
    assert len(lines) == 3 and len(problems) == 1 and "line 4" in problems[0]
    assert math.isnan(lines[1]["train/loss"]) and lines[0]["train/loss"] == 0.0
    assert [line["step"] for line in directory.cut_metrics(3)] == [10, 20]
    assert read_metrics(directory.metrics_path)[1] == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, "old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(tmp_path: Path) -> None:
    summary, path = run(tmp_path, "schedule.lr=1e30", "schedule.epochs=20")
    assert summary["status"] == "diverged"
    assert "training loss" in summary["reason"]
    assert summary["epochs"] < 20
    assert json.loads((path / "summary.json").read_text())["status"] == "diverged"
    assert run(tmp_path, "schedule.lr=1e30", "schedule.epochs=20")[0]["status"] == "diverged"  # a result: not repeated


def test_a_loss_no_better_than_chance_is_diverged(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, "schedule.lr=0", "model.batch_norm=all")
    assert summary["status"] == "diverged"
    assert "no better than chance (2.3026)" in summary["reason"]


def test_a_failure_is_recorded_and_the_run_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Trainer, indices: torch.Tensor) -> None:
        raise RuntimeError("the card fell off")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", broken)
        with pytest.raises(RuntimeError):
            run(tmp_path)
    path = run_dir(tmp_path, compose(TINY))
    failed = json.loads((path / "summary.json").read_text())
    assert (failed["status"], failed["reason"]) == ("failed", "RuntimeError: the card fell off")
    assert "the card fell off" in (path / "log.txt").read_text()
    assert run(tmp_path)[0]["status"] == "completed"


def test_missing_data_name_the_root_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(Misuse) as misuse:
        run(tmp_path, "dataset=mnist", f"data.root={tmp_path}/nowhere")
    assert f"{tmp_path}/nowhere" in str(misuse.value)
    assert f"python scripts/fetch_data.py mnist --root {tmp_path}/nowhere" in str(misuse.value)
    assert list(tmp_path.rglob("lock")) == []


def test_a_parent_is_run_once_for_all_its_children(tmp_path: Path) -> None:
    stage = ["method=compressed", "method.iterations=2", "method.every_epochs=1"]
    first, _ = run(tmp_path, *stage, "method.sparsity=0.5")
    parent = run_dir(tmp_path, compose([*TINY[:1], *TINY[3:], f"runs={tmp_path}"]))
    stamp = (parent / "summary.json").stat().st_mtime_ns
    second, _ = run(tmp_path, *stage, "method.sparsity=0.8")
    assert (parent / "summary.json").stat().st_mtime_ns == stamp
    assert first["parent"] == second["parent"] == {"key": parent.parent.name, "seed": 0}
    assert first["final"]["mask/sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_a_parent_without_its_checkpoint_is_run_again_for_a_new_child(tmp_path: Path) -> None:
    stage = ["method=compressed", "method.iterations=2", "method.every_epochs=1"]
    parent = run_dir(tmp_path, compose([*TINY[:1], *TINY[3:], f"runs={tmp_path}"]))
    run(tmp_path, *stage, "method.sparsity=0.5")
    before = json.loads((parent / "summary.json").read_text())["final"]["test/loss"]
    (parent / "checkpoints" / checkpoint.LAST).unlink()
    (parent / "checkpoints" / checkpoint.PREVIOUS).unlink(missing_ok=True)
    run(tmp_path, *stage, "method.sparsity=0.8")
    lines, _ = read_metrics(parent / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(1, 41))
    assert lines[-1]["test/loss"] == before


def test_a_stage_begins_at_its_parents_weights(tmp_path: Path) -> None:
    """At learning rate 0 and sparsity 0 the child is its parent."""
    stage = ["method=compressed", "method.iterations=2", "method.every_epochs=1", "method.sparsity=0", "schedule.lr=0"]
    summary, _ = run(tmp_path, *stage)
    parent = run_dir(tmp_path, compose([*TINY[:1], *TINY[3:], f"runs={tmp_path}"]))
    final = json.loads((parent / "summary.json").read_text())["final"]
    assert summary["final"]["test/loss"] == final["test/loss"]


def test_a_stage_can_take_its_parents_mask_with_the_initial_weights(tmp_path: Path) -> None:
    start = 'start={parent: ["method=set","method.sparsity=0.7","schedule.epochs=3"], take: mask}'
    _, path = run(tmp_path, "method=static", "method.sparsity=0.7", start, "schedule.lr=0.1")
    child = checkpoint.read(path / "checkpoints" / checkpoint.LAST)
    (parent_path,) = {p.parent.parent for p in tmp_path.rglob("last.pt")} - {path}
    parent = checkpoint.read(parent_path / "checkpoints" / checkpoint.LAST)
    assert digest(child["method"]["masks"]) == digest(parent["method"]["masks"])
    assert digest(child["model"]) != digest(parent["model"])


def test_stages_chain(tmp_path: Path) -> None:
    """Dense, then compressed, then training from the compressed model's mask: each run once, in order."""
    middle = (
        '"method=compressed","method.iterations=2","method.every_epochs=1","method.sparsity=0.7","schedule.epochs=3"'
    )
    summary, _ = run(tmp_path, "method=static", "method.sparsity=0.7", f"start={{parent: [{middle}], take: mask}}")
    runs = {p.parent.parent.parent.name: json.loads(p.read_text()) for p in tmp_path.rglob("summary.json")}
    assert sorted(runs) == ["compressed", "dense", "static"]
    assert summary["parent"]["key"] == runs["compressed"]["key"]
    assert runs["compressed"]["parent"]["key"] == runs["dense"]["key"]
    assert summary["final"]["mask/sparsity"] == runs["compressed"]["final"]["mask/sparsity"]
    overrides = json.loads(next(tmp_path.glob("*/*/dense/*/seed0/overrides.json")).read_text())
    assert "method=dense" in overrides


def test_the_child_of_a_diverged_parent_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(ParentFailed, match="has diverged; a stage needs its weights"):
        run(tmp_path, "method=compressed", "method.iterations=2", "method.every_epochs=1",
            'start.parent=["method=dense","schedule.lr=1e30"]')  # fmt: skip


def test_runs_in_one_process_do_not_touch_each_other(tmp_path: Path) -> None:
    a, b = ["method=deepr", "precision=bf16"], ["method=dsr", "method.period=2", "seed=3"]
    results = []
    for order, folder in (((a, b), "ab"), ((b, a), "ba")):
        paths = {str(each): run(tmp_path / folder, *each)[1] for each in order}
        results.append([outcome(paths[str(each)]) for each in (a, b)])
    assert results[0] == results[1]


def test_seed_zero_is_a_seed(tmp_path: Path) -> None:
    zero, _ = run(tmp_path, "seed=0")
    one, _ = run(tmp_path, "seed=1")
    assert zero["final"]["train/loss"] != one["final"]["train/loss"]
    assert run(tmp_path / "again", "seed=0")[0]["final"]["train/loss"] == zero["final"]["train/loss"]


def test_a_skipped_first_step_leaves_no_momentum(tiny: list[str], tmp_path: Path) -> None:
    """fp16 overflows at the first step; the second one is then the first of plain SGD with momentum."""
    trainers = []
    for fused in (True, False):
        overrides = [*tiny, "precision=fp16", f"schedule.optimizer.fused={fused}", f"runs={tmp_path}/{fused}"]
        config = compose(overrides)
        t = Trainer(make(config), RunDirectory(run_dir(config["runs"], config)))
        t.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-30)
        torch.manual_seed(0)
        before = [p.detach().clone() for p in t.model.parameters()]
        # What torch would take for its buffers is not zeros.
        spoilt = [torch.full_like(p, float("nan")) for p in t.model.parameters() for _ in range(4)]
        del spoilt
        t.step(torch.arange(10))
        assert all(torch.equal(p, old) for p, old in zip(t.model.parameters(), before, strict=True)), "skipped"
        t.step(torch.arange(10))
        assert not torch.equal(next(t.model.parameters()), before[0])
        trainers.append(t)
    for one, other in zip(trainers[0].model.parameters(), trainers[1].model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)
    for t in trainers:
        buffers = [state["momentum_buffer"] for state in t.optimizer.state.values()]
        assert buffers and all(bool(buffer.isfinite().all()) for buffer in buffers)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains(tmp_path: Path, precision: str) -> None:
    summary, _ = run(tmp_path, f"precision={precision}", "schedule.epochs=8")
    assert summary["status"] == "completed"
    assert summary["final"]["train/loss"] < 1.5


def test_best_is_reported_at_target_sparsity_only(tmp_path: Path) -> None:
    summary, path = run(tmp_path, "method=gmp", "method.sparsity=0.97", "method.iterations=3", "method.every_epochs=1",
                        "schedule.epochs=6")  # fmt: skip
    lines, _ = read_metrics(path / "metrics.jsonl")
    assert summary["best"]["epoch"] >= 3
    at_target = [line["test/accuracy"] for line in lines if line["epoch"] >= 3]
    assert summary["best"]["test/accuracy"] == max(at_target)
    layers = summary["layers"].values()
    kept = sum(layer["kept"] for layer in layers)
    assert kept == round(0.03 * sum(layer["total"] for layer in layers))


def test_the_log_and_the_environment_say_what_ran(tmp_path: Path) -> None:
    _, path = run(tmp_path)
    environment = json.loads((path / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0] or environment["packages"]["torch"]
    assert environment["device"] == "cpu" and environment["threads"] == 1
    assert set(environment["git"]) == {"commit", "dirty"}
    assert time.strptime(json.loads((path / "summary.json").read_text())["started"][:19], "%Y-%m-%dT%H:%M:%S")


@pytest.mark.parametrize("method", ["dense", "static", "topkast", "s_lats", "edge_popup", "sparsevd", "acdc"])
def test_what_a_run_held_is_free_when_it_ends(method: str, tmp_path: Path) -> None:
    """Without a collection: one is not due before many large models have filled the memory."""
    trainer = Trainer(make(compose([*TINY, f"method={method}", "schedule.epochs=20"])), RunDirectory(tmp_path))
    trainer.e.method.begin(trainer.ctx)
    trainer.step(torch.arange(9))
    trainer.evaluate()
    held = [weakref.ref(each) for each in (trainer, trainer.model, trainer.e.method, trainer.optimizer)]
    gc.disable()
    try:
        del trainer
        assert [each() for each in held] == [None] * 4
    finally:
        gc.enable()
