"""Which device a run gets, what each takes, the flags that make a run repeat; devices that are not here are posed."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runner import checkpoint, device
from runner.compose import compose
from runner.device import PRECISIONS, choose, keep_memory, reset, widened
from runner.environment import describe
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make, validate
from runner.identity import key, run_dir
from runner.trainer import Interrupted


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with or without a CUDA device (of this compute capability) and an Apple GPU."""

    def pose(cuda: tuple[int, int] | None = None, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
        monkeypatch.setattr(torch.backends.mps, "is_available", functools.cache(lambda: mps))

    return pose


@pytest.fixture(autouse=True)
def flags_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    threads = torch.get_num_threads()
    yield
    reset(threads, True, "fp32")


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "chosen"),
    [
        ("auto", None, False, "cpu"),
        ("auto", None, True, "cpu"),  # never Apple's GPU by itself
        ("auto", (8, 0), False, "cuda"),
        ("auto", (8, 0), True, "cuda"),
        ("cpu", (8, 0), True, "cpu"),
        ("cuda", (8, 0), False, "cuda"),
        ("cuda", None, True, "trainer.device = cuda, but no CUDA device is available; set trainer.device=cpu or auto."),
        ("mps", None, True, "mps"),
        ("mps", (8, 0), False, "trainer.device = mps, but no Apple GPU is available; set trainer.device=cpu or auto."),
    ],
)
def test_the_device_of_a_name(machine: Any, name: Any, cuda: tuple[int, int] | None, mps: bool, chosen: str) -> None:
    machine(cuda, mps)
    if " " not in chosen:
        assert choose(name, "fp32") == torch.device(chosen)
        return
    with pytest.raises(Misuse) as refused:
        choose(name, "fp32")
    assert str(refused.value) == chosen


def test_that_an_apple_gpu_is_left_alone_is_said(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    machine(mps=True)
    with caplog.at_level("INFO", "regrow"):
        choose("auto", "fp32")
    assert "the CPU is used, not Apple's GPU, which does not promise to repeat a number" in caplog.text


TAKES = {
    ("cpu", "tf32"): "TF32 is a mode of CUDA devices); use precision=fp32 or bf16 or fp16, or another trainer.device",
    ("mps", "tf32"): "reduced precisions have not been tried on Apple's GPUs); use precision=fp32, or another",
    ("mps", "bf16"): "precision = bf16 does not go with mps",
    ("mps", "fp16"): "precision = fp16 does not go with mps",
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_what_a_device_takes(machine: Any, kind: Any, precision: str) -> None:
    machine((8, 0), True)
    if (kind, precision) not in TAKES:
        assert choose(kind, precision).type == kind
        return
    with pytest.raises(Misuse) as refused:
        choose(kind, precision)
    assert TAKES[kind, precision] in str(refused.value)


def test_a_card_without_tf32_is_told(machine: Any) -> None:
    machine((7, 5))
    assert choose("auto", "fp16").type == "cuda"
    with pytest.raises(Misuse, match=r"precision = tf32, but Card has no TF32 .* use precision=fp32"):
        choose("auto", "tf32")


def test_a_run_in_a_precision_that_its_device_lacks_is_misuse_before_anything_is_written(
    tmp_path: Path, tiny: list[str]
) -> None:
    given = [*tiny, "precision=tf32", "trainer.device=cpu", f"runs={tmp_path}"]
    validate(compose(given))  # it may be submitted from here to where the devices are
    with pytest.raises(Misuse, match="precision = tf32 does not go with cpu"):
        execute(compose(given), given)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    with pytest.raises(Misuse, match="precision = 'fp8' should be one of fp32, tf32, bf16, fp16"):
        validate(compose([*tiny, "precision=fp8"]))


def test_a_precision_is_science_and_a_device_is_not(tiny: list[str]) -> None:
    keys = {precision: key(compose([*tiny, f"precision={precision}"])) for precision in PRECISIONS}
    assert len(set(keys.values())) == len(PRECISIONS)
    assert {key(compose([*tiny, f"trainer.device={name}"])) for name in ("auto", "cpu", "cuda", "mps")} == {
        keys["fp32"]
    }


# What makes a run repeat


def disturbed() -> None:
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = False
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("deterministic", [True, False])
def test_every_flag_is_set_whatever_it_was(precision: str, deterministic: bool) -> None:
    disturbed()
    reset(1, deterministic, precision)
    assert torch.get_num_threads() == 1 and torch.get_default_dtype() == torch.float32
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.backends.cudnn.deterministic == deterministic
    assert torch.backends.cudnn.benchmark != deterministic
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    tiny_number = torch.tensor([1e-40]) * 1.0
    assert tiny_number.item() == 0.0 or not torch.set_flush_denormal(True)


def test_a_workspace_that_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    reset(1, True, "fp32")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_run_sets_the_flags_of_its_own_configuration(tiny: list[str]) -> None:
    disturbed()
    make(compose([*tiny, "trainer.deterministic=false"]))
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()


def test_sums_are_kept_in_float64_where_there_is_one() -> None:
    assert widened(torch.ones(1, dtype=torch.float32)).dtype == torch.float64
    moved: list[str] = []

    class OnApple:
        """Has no float64, and says so as torch does."""

        device = SimpleNamespace(type="mps")

        def double(self) -> None:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )

        def cpu(self) -> torch.Tensor:
            moved.append("cpu")
            return torch.ones(1)

    found: Any = OnApple()
    assert widened(found).dtype == torch.float64 and moved == ["cpu"]


# What is recorded and restored


def test_a_run_on_a_card_records_which(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="Card", total_memory=80, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda name: card if name == "cuda:1" else None)
    found = describe("cuda:1", 4)
    assert found["device"] == "cuda:1" and found["device_name"] == "Card" and found["compute_capability"] == "9.0"
    assert found["device_memory"] == 80 and {"cuda", "cudnn"} <= found.keys()
    assert not {"device_name", "cuda"} & describe("cpu", 1).keys()


def test_a_run_that_began_on_a_card_goes_on_without_one(tmp_path: Path, tiny: list[str]) -> None:
    """Its generator is of no use here, and no reason to fail."""
    given = [*tiny, f"runs={tmp_path}"]
    config = compose(given)
    asked = iter([False, False, False, True])
    trainer = make_trainer(config, lambda: next(asked))
    with pytest.raises(Interrupted):
        trainer.fit()
    folder = run_dir(tmp_path, config) / "checkpoints"
    state = checkpoint.load(folder)
    assert state is not None
    with_card = {**state, "rng": {**state["rng"], "cuda": torch.zeros(16, dtype=torch.uint8)}}
    checkpoint.save(with_card, folder)
    assert execute(config, given)["epochs"] == 2


def make_trainer(config: dict[str, Any], stop: Any) -> Any:
    from runner.records import RunDirectory
    from runner.trainer import Trainer

    return Trainer(make(config), RunDirectory(run_dir(config["runs"], config)), stop=stop)


def test_the_names_that_a_configuration_may_say_are_those_that_can_be_chosen() -> None:
    with pytest.raises(Misuse, match=r"trainer\.device = 'tpu' should be one of auto, cpu, cuda, mps"):
        validate(compose(["trainer.device=tpu"]))
    assert set(device._TAKES) == {"cpu", "cuda", "mps"}
    assert all(set(taken) <= set(PRECISIONS) for taken in device._TAKES.values())


def test_freed_memory_is_used_again() -> None:
    """By itself glibc maps each of these blocks anew, since each is larger than all that were freed before."""
    code = (
        "import resource, sys, torch; from runner.device import reset\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "if sys.argv[1] == 'kept': reset(1, True, 'fp32')\n"
        "for _ in range(100): torch.ones(1_000)\n"
        "before = faults()\n"
        "for size in range(1, 8): torch.ones(size * 1_000_000)\n"
        "print((faults() - before) * resource.getpagesize() / 1e6)"
    )
    taken = {
        how: float(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "mapped")
    }
    if not keep_memory():
        pytest.skip("the C library is not glibc")
    assert taken["mapped"] > 100  # of 112 MB
    assert taken["kept"] < 60  # the largest, and what could not be extended


def test_memory_goes_back_after_a_run() -> None:
    code = (
        "import torch; from runner.device import keep_memory, return_memory\n"
        "def resident():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith('VmRSS'))\n"
        "before = resident(); assert keep_memory()\n"
        "held = [torch.ones(1_000_000) for _ in range(200)]; last = torch.ones(1000); del held\n"
        "kept = resident(); return_memory(); print(kept - before, resident() - before)"
    )
    if not keep_memory():
        pytest.skip("the C library is not glibc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, left = map(float, done.stdout.split())
    assert kept > 700 and left < 200  # MiB, of 763
