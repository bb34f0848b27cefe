"""What leaves the lab: weights, programs, ONNX and a card, read back as a stranger would."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from methods.allocation import prunable_weights
from results.render.card import _choice
from runner.compose import compose
from runner.execute import execute
from runner.identity import run_dir
from runner.repeat import finished
from scripts.runs import main

SMALL = ["schedule.epochs=2", "schedule.batch_size=12", "schedule.lr=0.05", "profile=full"]
DIGITS = ["dataset=digits", "dataset.train_subset=48", "model.hidden=[20,10]"]
COLOUR = ["dataset=synthetic", "dataset.shape=[3,32,32]", "dataset.train_size=24", "dataset.test_size=10"]


def released(overrides: Sequence[str], folder: Path) -> tuple[Path, torch.nn.Module, Any]:
    """Run it, release it: the release's folder, the trained network, and its test images."""
    config = compose([*SMALL, *overrides, f"runs={folder / 'runs'}"])
    summary = execute(config, list(overrides))
    path = run_dir(config["runs"], config)
    assert main(["release", str(path), "--images", "9", "--out", str(folder / "out")]) == 0
    trainer = finished(path, config, summary["steps"])
    images = next(iter(trainer.e.data.test_batches(5)))[0]
    return folder / "out", trainer.e.method.finalize(trainer.model).eval(), images


def lines(out: Path) -> list[str]:
    (block,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    return str(block).splitlines()


def in_a_new_process(line: str, out: Path, images: torch.Tensor, regrow: bool) -> torch.Tensor:
    """What the model of one line of the card gives, in the release's folder; `regrow`: with the code at hand."""
    torch.save(images, out.parent / "images.pt")
    code = f"{line}\nwith torch.no_grad(): torch.save(model(torch.load('../images.pt')), '../outputs.pt')"
    root = str(Path(__file__).resolve().parents[1])
    flags = [] if regrow else ["-c", "import sys; sys.modules.update(runner=None, models=None, methods=None)\n" + code]
    done = subprocess.run(
        [sys.executable, *(flags or ["-c", code])],
        cwd=out, env=os.environ | {"PYTHONPATH": root if regrow else ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs: torch.Tensor = torch.load(out.parent / "outputs.pt")
    return outputs


def test_weights_program_and_onnx_are_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, model, images = released([*DIGITS, "method=set", "method.sparsity=0.8"], tmp_path)
    assert {file.name for file in out.iterdir()} == {"weights.pt", "model.pt2", "model.onnx", "README.md"}
    assert "compact.pt2  left out: SET leaves no whole filters out" in capsys.readouterr().out
    state = torch.load(out / "weights.pt", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    for name, weight in prunable_weights(model).items():
        assert torch.equal(state[name], weight) and int((state[name] == 0).sum()) > 0.5 * weight.numel()
    with torch.no_grad():
        expected = model(images)
    own, program = lines(out)
    assert torch.equal(in_a_new_process(own, out, images, regrow=True), expected)
    assert torch.allclose(in_a_new_process(program, out, images, regrow=False), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    assert torch.allclose(torch.from_numpy(session.run(None, {"input": images.numpy()})[0]), expected, atol=1e-5)


def test_the_card_says_what_the_run_says(tmp_path: Path) -> None:
    out, model, _ = released([*DIGITS, "method=dsr", "method.sparsity=0.8", "method.count=20"], tmp_path)
    card = (out / "README.md").read_text()
    (path,) = (tmp_path / "runs").rglob("summary.json")
    summary = json.loads(path.read_text())
    assert f"key `{summary['key']}`, seed 0, 2 epochs" in card and "Mostafa & Wang 2019" in card
    assert f"| test/accuracy | {summary['final']['test/accuracy']:.6g} |" in card
    assert "`36d6403295fb`" not in card and "Tables that read this run | none" in card
    for name, weight in prunable_weights(model).items():
        assert f"| {name} | {int((weight == 0).sum()):,} | {weight.numel():,} |" in card
    for file in ("weights.pt", "model.pt2", "model.onnx"):
        assert f"`{hashlib.sha256((out / file).read_bytes()).hexdigest()}`" in card
    assert "subtract 4.8848, then divide by 6.016" in card  # 16 x the mean and the deviation of digits.yaml
    assert "method=dsr method.sparsity=0.8 method.count=20\n```" in card


def test_nothing_tells_of_this_machine(tmp_path: Path) -> None:
    out, *_ = released([*DIGITS, "method=static"], tmp_path)
    root = str(Path(__file__).resolve().parents[1]).encode()
    for file in out.iterdir():
        content = file.read_bytes()
        assert root not in content and str(tmp_path).encode() not in content, file


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose([*SMALL, *DIGITS, f"runs={tmp_path / 'runs'}"])
    execute(config, [])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    assert main(["release", str(run_dir(config["runs"], config)), "--out", str(tmp_path / "mine")]) == 2
    assert "holds something else already; name another folder with --out." in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_second_release_takes_the_place_of_the_first(tmp_path: Path) -> None:
    out, *_ = released([*DIGITS, "method=static"], tmp_path)
    (out / "compact.pt2").write_bytes(b"of a structured run")
    before = (out / "weights.pt").read_bytes()
    again, *_ = released([*DIGITS, "method=static"], tmp_path)
    assert again == out and (out / "weights.pt").read_bytes() == before and not (out / "compact.pt2").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        [*DIGITS, "method=sparsevd"],
        [*COLOUR, "model=wrn_28_2", "model.depth=10", "model.width=1", "memory_format=channels_last"],
    ],
    ids=["a network that is settled once", "a memory format of training"],
)
def test_what_training_hung_on_a_network_is_left_behind(overrides: list[str], tmp_path: Path) -> None:
    out, model, images = released(overrides, tmp_path)
    own = next(line for line in lines(out) if "that built it" in line)
    with torch.no_grad():
        assert torch.allclose(in_a_new_process(own, out, images, regrow=True), model(images), atol=1e-5)


def test_the_card_of_a_librarys_model_does_not_take_our_words() -> None:
    theirs = {"name": "resnet18", "_target_": "models.catalog.timm_model", "pretrained": False}
    ours = {"name": "dense", "_target_": "methods.base.Method"}
    assert _choice("model", {"model": theirs}) == "`models.catalog.timm_model`, name resnet18 Options: pretrained False"
    assert _choice("method", {"method": ours}).startswith("Dense training")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "libraries"),
    [
        (["model=resnet18"], ["torchvision", "timm"]),
        (["model=timm", "model.name=resnet18"], ["timm", "torchvision"]),
        (["model=torchvision", "model.name=mobilenet_v3_small"], ["torchvision"]),
    ],
    ids=["ours", "timm", "torchvision"],
)
def test_weights_fit_the_plain_model_of_the_family(model: list[str], libraries: list[str], tmp_path: Path) -> None:
    out, network, images = released(
        [*COLOUR, *model, "method=gmp", "method.iterations=1", "method.sparsity=0.5"], tmp_path
    )
    with torch.no_grad():
        expected = network(images)
    for library in libraries:
        (line,) = (line for line in lines(out) if line.endswith(f"# a model of {library}"))
        assert torch.allclose(in_a_new_process(line, out, images, regrow=False), expected, atol=1e-4)


@pytest.mark.slow
def test_a_structured_network_leaves_as_a_smaller_one(tmp_path: Path) -> None:
    out, model, images = released([*COLOUR, "model=resnet20", "method=sfp", "method.sparsity=0.3",
                                   "method.end_epoch=2"], tmp_path)  # fmt: skip
    compact = torch.export.load(out / "compact.pt2")
    with torch.no_grad():
        assert torch.allclose(compact.module()(images), model(images), atol=1e-4)
    sizes = [sum(tensor.numel() for tensor in state.values()) for state in (compact.state_dict, model.state_dict())]
    assert sizes[0] < 0.9 * sizes[1]


@pytest.mark.slow
def test_a_network_of_texts_leaves_as_weights(tmp_path: Path) -> None:
    out, model, _ = released(["dataset=synthetic_texts", "model=lstm", "method=gmp", "method.iterations=1"], tmp_path)
    assert {file.name for file in out.iterdir()} == {"weights.pt", "README.md"}
    assert "left out: made of networks of images only" in (out / "README.md").read_text()
    assert len(lines(out)) == 1 and "models.recurrent" in lines(out)[0]
    state = torch.load(out / "weights.pt", weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
