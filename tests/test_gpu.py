"""On a CUDA device: the same run as on the CPU, to rounding, for every method; reduced precision; compilation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from runner.compose import compose, names
from runner.execute import execute

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
