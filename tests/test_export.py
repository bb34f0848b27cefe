"""runs.py export: a run's network as an ONNX model with the same zeros and the same outputs, and nothing else in it."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods.allocation import prunable_weights
from runner import speedup
from runner.compose import compose
from runner.errors import Misuse
from runner.execute import execute
from runner.identity import key, run_dir
from runner.repeat import finished, here
from scripts import runs as command

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'regrow[engines]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'regrow[engines]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'regrow[engines]'")

from runner.export import exported, zeros  # noqa: E402

DIGITS = (
    "dataset=digits",
    "dataset.train_subset=100",
    "schedule.batch_size=20",
    "schedule.lr=0.1",
    "schedule.epochs=2",
)
MADE = {
    "resnet": ("model=resnet20", "model.depth=8", "model.width=4", "method=set", "method.sparsity=0.8"),
    "lenet": ("model.hidden=[20,10]", "method=static", "memory_format=channels_last"),
}
# A mean over the sides, a residual stream, batch norms with statistics of their own, both ways to compute weights.
STEPS = 10


def overrides(name: str) -> list[str]:
    return [*DIGITS, *MADE[name]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for name in MADE:
        given = [*overrides(name), f"runs={root}"]
        execute(compose(given), given)
    return root


def call(root: Path, name: str, *arguments: str | Path) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = command.main(["export", *map(str, (key(compose(overrides(name))), "--runs", root, *arguments))])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def told(root: Path) -> dict[str, tuple[int, str, str]]:
    """What exporting each run says; exporting takes seconds."""
    return {name: call(root, name, "--images", "200") for name in MADE}


@pytest.mark.parametrize("name", MADE)
def test_zeros_and_outputs_are_those_of_the_run(name: str, root: Path, told: dict[str, tuple[int, str, str]]) -> None:
    code, out, err = told[name]
    path = run_dir(root, compose(overrides(name)))
    assert (code, err) == (0, f"The model is {path / 'model.onnx'}.\n")
    trainer = finished(path, here(compose([*overrides(name), f"runs={root}"])), STEPS)
    model, masks = trainer.model.eval(), trainer.e.method.masks()

    proto = onnx.load(path / "model.onnx")
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    assert set(masks) <= set(stored)
    for weight, mask in masks.items():
        assert not stored[weight][~mask.numpy()].any()
        assert np.count_nonzero(stored[weight]) == int(dict(model.named_parameters())[weight].count_nonzero())
    dropped = sum(int((~mask).sum()) for mask in masks.values())
    assert dropped > 0 and f"{dropped:,} of " in out and f"({dropped:,} there)" in out
    assert "Outputs on 200 test images" in out and "0 other prediction(s)" in out

    session = onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
    images = next(iter(trainer.e.data.test_batches(360)))[0]
    with torch.no_grad():
        wanted = model(images).numpy()
    for count in (1, 3, 360):  # the batch size is left open
        (found,) = session.run(["output"], {"input": images[:count].numpy()})
        np.testing.assert_allclose(found, wanted[:count], rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_the_file_says_what_it_is_and_nothing_of_this_machine(root: Path, told: dict[str, Any]) -> None:
    assert told["resnet"][0] == 0
    file = run_dir(root, compose(overrides("resnet"))) / "model.onnx"
    proto = onnx.load(file)
    facts = {each.key: each.value for each in proto.metadata_props}
    assert facts == {"key": key(compose(overrides("resnet"))), "seed": "0", "model": "resnet20", "method": "set"}
    content = file.read_bytes()
    assert b".py" not in content and b"/" + b"lib" not in content and b"torch.nn" not in content
    assert [(each.domain, each.version) for each in proto.opset_import] == [("", 17)] and proto.ir_version == 8
    assert {"Conv", "GlobalAveragePool", "Gemm"} <= {node.op_type for node in proto.graph.node}
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}  # folded


def test_outputs_that_differ_are_an_error_and_nothing_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedup, "ROUNDING", 0.0)
    file = tmp_path / "net.onnx"
    code, _, err = call(root, "lenet", "--out", file)
    assert (code, err) == (1, "The outputs differ by more than rounding; nothing is written.\n")
    assert not file.exists()


def test_images_are_counted_from_one(root: Path) -> None:
    assert call(root, "resnet", "--images", "0") == (2, "", "--images 0 should be 1 or above.\n")


def small() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        for weight in prunable_weights(model).values():
            weight[weight.abs() < weight.abs().median()] = 0
    return model


def test_a_zero_that_is_lost_is_found() -> None:
    model = small()
    proto = exported(model, torch.randn(1, 1, 4, 4))
    counts = zeros(model, proto)
    assert counts == {"model": 40, "exported": 40, "weights": 84}  # those below the lower median: 17 of 36, 23 of 48
    for each in proto.graph.initializer:
        if each.name == "0.weight":
            changed = onnx.numpy_helper.to_array(each).copy()
            changed[changed == 0] = 1e-30
            each.CopyFrom(onnx.numpy_helper.from_array(changed, each.name))
    with pytest.raises(Misuse, match=r"The zeros of 0\.weight are not kept"):
        zeros(model, proto)
    next(each for each in proto.graph.initializer if each.name == "0.weight").name = "other"
    with pytest.raises(Misuse, match=r"no weight 0\.weight"):
        zeros(model, proto)


def test_exporting_leaves_the_model_as_it_was() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    exported(model, torch.randn(2, 1, 4, 4), {"key": "k"})
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_networks_of_images_are_exported() -> None:
    with pytest.raises(Misuse, match="Only networks of images"):
        exported(nn.Embedding(3, 2), torch.tensor([1, 2]))


def test_what_cannot_be_exported_is_one_sentence() -> None:
    class Turning(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(Misuse, match="This network cannot be exported: ") as caught:
        exported(Turning(), torch.randn(2, 3))
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(Misuse, match=r"needs onnxscript, which is not installed: pip install 'regrow\[engines\]'"):
        exported(small(), torch.randn(1, 1, 4, 4))
