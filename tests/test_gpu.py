"""On a CUDA device: the same run as on the CPU, to rounding, for every method; precisions; repetition; resuming."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from runner import checkpoint
from runner.compose import CONF, compose, names
from runner.device import reset
from runner.execute import execute
from runner.identity import run_dir
from tests.killing import outcome

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TINY = ["model.hidden=[24,12]", "schedule.epochs=3", "schedule.batch_size=128", "dataset.train_subset=512"]
OWN = {"gmp": ["method.iterations=2"], "compressed": ["method.iterations=2", "method.every_epochs=1"]}


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    given = [*TINY, *overrides, f"runs={folder}"]
    return execute(compose(given), given)


@pytest.mark.parametrize("method", names("method"))
def test_a_run_is_the_same_run_on_either_device(tmp_path: Path, method: str) -> None:
    own = [f"method={method}", *OWN.get(method, [])]
    here = run(tmp_path / "cpu", *own, "trainer.device=cpu")
    there = run(tmp_path / "cuda", *own, "trainer.device=cuda")
    assert there["key"] == here["key"]
    assert there["final"]["mask/sparsity"] == here["final"]["mask/sparsity"]
    assert there["final"]["train/loss"] == pytest.approx(here["final"]["train/loss"], rel=0.05)


@pytest.mark.parametrize("option", ["precision=bf16", "precision=fp16", "trainer.compile=true"])
def test_faster_ways_train_too(tmp_path: Path, option: str) -> None:
    summary = run(tmp_path, "method=dsr", "method.period=3", "schedule.epochs=8", "trainer.device=cuda", option)
    assert summary["status"] == "completed"
    assert summary["final"]["train/loss"] < 1.5


# One run in a process of its own, which kills itself at a step, if one is named.
ALONE = """
import os, signal, sys
from runner.compose import compose
from runner.execute import execute
from runner.trainer import Trainer
whole, last = Trainer.step, int(sys.argv[1])
def step(self, *arguments):
    if self.ctx.step == last:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, *arguments)
Trainer.step = step
execute(compose(sys.argv[2:]), sys.argv[2:])
"""


def alone(given: list[str], last: int = -1) -> int:
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    return subprocess.run([sys.executable, "-c", ALONE, str(last), *given], env=environment).returncode


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_run_repeats_and_resumes_bit_for_bit_with_deterministic_kernels(tmp_path: Path, precision: str) -> None:
    """Convolutions, dropout from the device's own generator, a method that moves; twice, and once killed in between."""
    if precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this card has no TF32")
    small = ["model=wrn_28_2", "model.depth=10", "model.width=1", "model.dropout=0.3", "schedule.epochs=3",
             "schedule.batch_size=128", "dataset.train_subset=512", "method=dsr", "method.count=40", "method.period=2",
             f"precision={precision}", "trainer.device=cuda", "trainer.checkpoint_seconds=0"]  # fmt: skip
    paths = []
    for name, kill in (("once", None), ("again", None), ("killed", 7)):
        given = [*small, f"runs={tmp_path / name}"]
        if kill is not None:
            assert alone(given, kill) == -signal.SIGKILL
        assert alone(given) == 0
        paths.append(run_dir(tmp_path / name, compose(given)))
        assert checkpoint.read(paths[-1] / "checkpoints" / checkpoint.LAST)["position"]["step"] == 12
    assert outcome(paths[0]) == outcome(paths[1]) == outcome(paths[2])
    environment = json.loads((paths[0] / "environment.json").read_text())
    assert environment["device_name"] == torch.cuda.get_device_name()


def test_fp32_is_fp32_and_tf32_is_not(tmp_path: Path) -> None:
    """Products of matrices and convolutions against float64: 24 bits, or 11."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this card has no TF32")
    torch.manual_seed(0)
    a, x, w = torch.randn(512, 512), torch.randn(8, 64, 16, 16), torch.randn(64, 64, 3, 3)
    exact = [a.double() @ a.double(), torch.nn.functional.conv2d(x.double(), w.double())]
    errors = {}
    for precision in ("fp32", "tf32"):
        reset(1, True, precision)
        there = [a.cuda() @ a.cuda(), torch.nn.functional.conv2d(x.cuda(), w.cuda())]
        errors[precision] = [
            ((t.cpu() - e).abs().max() / e.abs().max()).item() for t, e in zip(there, exact, strict=True)
        ]
    reset(1, True, "fp32")
    assert max(errors["fp32"]) < 1e-5 < 1e-4 < min(errors["tf32"])
