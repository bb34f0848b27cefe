"""Where a run computes, and what makes it compute the same again: devices, precisions, determinism, the generators."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor

from runner.errors import Misuse

Name = Literal["auto", "cpu", "cuda", "mps"]
log = logging.getLogger("regrow")

#: What `precision` may be. tf32: fp32 whose matrix products and convolutions round their inputs to 10 bits.
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
# Those that a kind of device takes. mps has no float64 and is tried in fp32 only.
_TAKES = {"cpu": ("fp32", "bf16", "fp16"), "cuda": PRECISIONS, "mps": ("fp32",)}
_WHY = {
    "cpu": "TF32 is a mode of CUDA devices",
    "mps": "reduced precisions have not been tried on Apple's GPUs",
}
_AMPERE = (8, 0)  # the first compute capability with TF32


def choose(name: Name, precision: str) -> torch.device:
    """The device of this name, for runs of this precision. Misuse when it is not there or does not take the precision.

    auto: CUDA where there is one, else the CPU. Never Apple's GPU (mps), which must be asked for: it has no float64, so
    that its sums go through the CPU, and nothing promises that it repeats a number.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise Misuse("trainer.device = cuda, but no CUDA device is available; set trainer.device=cpu or auto.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise Misuse("trainer.device = mps, but no Apple GPU is available; set trainer.device=cpu or auto.")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if name == "auto" and kind == "cpu" and torch.backends.mps.is_available():
        log.info("the CPU is used, not Apple's GPU, which does not promise to repeat a number; trainer.device=mps does")
    if precision not in _TAKES[kind]:
        raise Misuse(
            f"precision = {precision} does not go with {kind} ({_WHY[kind]}); use "
            f"precision={' or '.join(_TAKES[kind])}, or another trainer.device."
        )
    if precision == "tf32" and torch.cuda.get_device_capability() < _AMPERE:
        raise Misuse(
            f"precision = tf32, but {torch.cuda.get_device_name()} has no TF32 (it came with compute capability "
            "8.0); use precision=fp32."
        )
    return torch.device(kind)


#: Whether new memory is filled with NaN in every run, so that whoever reads what nobody wrote is found: in the tests.
FILL = False


def reset(threads: int, deterministic: bool, precision: str, kind: str = "cpu") -> None:
    """Start from the same global state whatever ran before in this process. `kind`: of device.

    To be called before the run's first CUDA operation: cuBLAS reads its variable when it starts.
    """
    torch.set_num_threads(threads)
    if kind == "cpu":
        keep_memory()
    # Momentum behind a mask decays into denormal numbers, which are many times slower on CPUs.
    torch.set_flush_denormal(True)
    torch.set_default_dtype(torch.float32)
    # Warnings only: a few operations have no deterministic kernel, and the log says which of them a run uses.
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Filling costs a pass over every temporary. Torch's bf16 on CPUs needs it: the weight gradient of a convolution
    # with a stride, over an input smaller than its kernel, is not written everywhere, and should not pass for one.
    fill = FILL or (kind, precision) == ("cpu", "bf16")
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    # Without a workspace of its own for each stream, cuBLAS may add in another order. It costs 25 MB at most.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Torch's own default rounds cuDNN's convolutions to TF32: fp32 would not be what it says.
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


#: What glibc's mallopt is told: the size from which a block is mapped for itself, at most 32 MiB, and how much free
#: memory may lie at the heap's end.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = (-3, 1 << 25), (-1, (1 << 31) - 1)


@functools.cache
def keep_memory() -> bool:
    """Have this process keep the memory that it has freed, until `return_memory`; False where there is no glibc.

    By itself glibc gives every big tensor's memory back to the system, which hands it out again page by page, zeroed:
    in each step of a ResNet on a CPU tens of thousands of page faults, a tenth of its time.
    """
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([tell(*_MMAP_THRESHOLD), tell(*_TRIM_THRESHOLD)])


def return_memory() -> None:
    """After a run: what `keep_memory` has kept goes back to the system, for this process may train a smaller one."""
    if keep_memory.cache_info().currsize:
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def hardware(device: str) -> dict[str, Any]:
    """What a run's environment says of a CUDA device: its name, memory in bytes, capability, and the libraries'."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "device_name": properties.name,
        "device_memory": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float64, in which sums over samples are kept. Apple's GPU has none, so that the CPU keeps them."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
