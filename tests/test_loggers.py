"""Weights & Biases, offline: what it is told, and that runs in one process keep apart."""

from pathlib import Path

import pytest

from runner.compose import compose
from runner.execute import execute
from runner.identity import run_dir

TINY = ["model.hidden=[16]", "schedule.epochs=2", "dataset.train_subset=256", "logger=wandb"]


@pytest.mark.slow
def test_wandb_offline_hears_every_epoch_of_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # its one look-up stays on this machine
    for seed in (0, 1):
        given = [*TINY, f"seed={seed}", f"runs={tmp_path}"]
        config = compose(given)
        summary = execute(config, given)
        (file,) = run_dir(tmp_path, config).rglob("*.wandb")
        assert file.stem == f"run-{summary['key']}-{seed}"
        content = file.read_bytes()
        assert content.count(b"test/accuracy") >= 2
        assert str(tmp_path / "data").encode() not in content


def test_the_logger_is_no_part_of_the_key() -> None:
    from runner.identity import key

    assert key(compose(TINY)) == key(compose(TINY[:-1]))
