"""The inference engines: each opens a network for one batch size and number of threads, and times its passes."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from runner.environment import ROOT
from runner.errors import Misuse, nearest
from runner.export import INPUT, INSTALL, OUTPUT

Array = np.ndarray[Any, np.dtype[np.float32]]
#: The Python that has DeepSparse, which needs a numpy and an onnx that regrow is too new for.
DEEPSPARSE = ROOT / ".deepsparse" / "bin" / "python"
_SERVER = Path(__file__).with_name("deepsparse_server.py")
# Of its operators; a network that falls below this would be computed by another engine that DeepSparse has inside.
_OWN_OPERATORS = 0.9


@dataclass(frozen=True)
class Network:
    """A network in inference mode, in fp32 on the CPU, and the ONNX file that it has been exported to."""

    model: nn.Module
    file: Path


class Session(Protocol):
    """A network opened for one batch size and number of threads."""

    #: What the record should say of it.
    facts: dict[str, Any]

    def outputs(self, images: Array) -> Array:
        """Of one pass."""

    def seconds(self, images: Array, passes: int, warm: bool) -> float:
        """Of one pass: the mean of `passes`; with `warm` after one that does not count."""

    def close(self) -> None:
        """Give its memory back."""


class Engine(Protocol):
    """An inference engine. `about`: its version and what else a time depends on."""

    about: dict[str, Any]
    #: How far outputs may lie from the network's own, as a share of the largest one.
    rounding: float

    def open(self, network: Network, batch: int, threads: int) -> Session: ...

    def close(self) -> None: ...


class _Local:
    """A session within this process: `run` makes one pass."""

    def __init__(self, run: Callable[[Array], Array], **facts: Any) -> None:
        self.outputs = run
        self.facts = facts

    def seconds(self, images: Array, passes: int, warm: bool) -> float:
        if warm:
            self.outputs(images)
        began = time.perf_counter()
        for _ in range(passes):
            self.outputs(images)
        return (time.perf_counter() - began) / passes

    def close(self) -> None:
        del self.outputs


class OnnxRuntime:
    """ONNX Runtime on the CPU, with all of its graph optimisations; it computes with the zeros."""

    rounding = 1e-4

    def __init__(self) -> None:
        onnxruntime = _needed("onnxruntime", INSTALL)
        self.about = {"version": onnxruntime.__version__}

    def session(self, content: bytes | str, threads: int, batch: int | None = None) -> Any:
        """An onnxruntime.InferenceSession of an ONNX file or its content."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if batch is not None:
            options.add_free_dimension_override_by_name("batch", batch)
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def open(self, network: Network, batch: int, threads: int) -> Session:
        session = self.session(str(network.file), threads, batch)
        return _Local(lambda images: session.run([OUTPUT], {INPUT: images})[0])

    def close(self) -> None:
        """Nothing is left open."""


class OpenVino:
    """OpenVINO on the CPU, in fp32 (by itself it computes in bf16 where the CPU can); it computes with the zeros."""

    rounding = 1e-4

    def __init__(self) -> None:
        openvino = _needed("openvino", INSTALL)
        self.about = {"version": importlib.metadata.version("openvino"), "precision": "f32"}
        self.core = openvino.Core()

    def open(self, network: Network, batch: int, threads: int) -> Session:
        model = self.core.read_model(str(network.file))
        shape = model.input(0).partial_shape
        shape[0] = batch
        model.reshape(shape)
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = self.core.compile_model(model, "CPU", options).create_infer_request()
        return _Local(lambda images: request.infer([images])[0])

    def close(self) -> None:
        """Nothing is left open."""


class DeepSparse:
    """DeepSparse 1.8, which skips zeros, in a process and an environment of its own. At its end of life: optional."""

    rounding = 1e-4

    def __init__(self) -> None:
        if not DEEPSPARSE.exists():
            raise Misuse(
                "DeepSparse is not installed (it needs an environment of its own): make deepsparse; or leave it out, "
                "as in --engine onnxruntime openvino."
            )
        self.folder = tempfile.TemporaryDirectory(prefix="regrow-deepsparse-")
        self.said = Path(self.folder.name, "said").open("w+")  # noqa: SIM115  (closed with the process)
        self.process = subprocess.Popen(
            [DEEPSPARSE, "-I", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            # It would otherwise tell its maker's server that it is used.
            env={**os.environ, "NM_DISABLE_ANALYTICS": "1", "NM_NO_WARNINGS": "1"},
        )
        self.about = self.ask(command="about")

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer of the process. Misuse with its reason when it has none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.said.seek(0)
            said = self.said.read().strip().splitlines() or ["it said nothing"]
            raise Misuse(f"DeepSparse has stopped (exit code {self.process.poll()}): {said[-1]}.") from None
        if "error" in answer:
            raise Misuse(f"DeepSparse: {answer['error']}.")
        return answer

    def open(self, network: Network, batch: int, threads: int) -> Session:
        opened = self.ask(command="open", file=str(network.file), batch=batch, threads=threads)
        if opened["own"] < _OWN_OPERATORS:
            raise Misuse(
                f"DeepSparse computes {opened['own']:.0%} of this network's operators itself and would leave the "
                "others to ONNX Runtime: that is no time of DeepSparse. Leave it out with --engine."
            )
        return _Remote(self, opened["session"], {"own_operators": opened["own"]})

    def stored(self, images: Array) -> str:
        """The file that hands `images` over."""
        path = Path(self.folder.name, "images.npy")
        np.save(path, images)
        return str(path)

    def close(self) -> None:
        self.process.communicate()  # the end of its input ends it
        self.said.close()
        self.folder.cleanup()


@dataclass
class _Remote:
    engine: DeepSparse
    session: int
    facts: dict[str, Any]

    def outputs(self, images: Array) -> Array:
        target = Path(self.engine.folder.name, "outputs.npy")
        source = self.engine.stored(images)
        self.engine.ask(command="run", session=self.session, images=source, outputs=str(target))
        found: Array = np.load(target)
        return found

    def seconds(self, images: Array, passes: int, warm: bool) -> float:
        source = self.engine.stored(images)
        told = self.engine.ask(command="time", session=self.session, images=source, passes=passes, warm=warm)
        return float(told["seconds"])

    def close(self) -> None:
        self.engine.ask(command="close", session=self.session)


class SemiStructured:
    """2:4 weights on the sparse tensor cores of an NVIDIA GPU (from Ampere on), in fp16, through torch."""

    rounding = 2e-2  # half precision

    def __init__(self) -> None:
        if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
            raise Misuse("semi_structured needs an NVIDIA GPU of compute capability 8.0 or above, and here is none.")
        self.about = {"version": torch.__version__, "precision": "fp16", "device": torch.cuda.get_device_name()}

    def open(self, network: Network, batch: int, threads: int) -> Session:
        from runner.semi_structured import converted

        model, layers = converted(copy.deepcopy(network.model).cuda().half())

        @torch.inference_mode()
        def run(images: Array) -> Array:
            found = model(self._there(images)).float().cpu()  # which waits for the device
            return np.asarray(found.numpy())

        return _Local(run, sparse_layers=len(layers))

    @staticmethod
    def _there(images: Array) -> torch.Tensor:
        return torch.from_numpy(images).cuda().half().contiguous(memory_format=torch.channels_last)

    def close(self) -> None:
        """Nothing is left open."""


ENGINES: dict[str, Callable[[], Engine]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "deepsparse": DeepSparse,
    "semi_structured": SemiStructured,
}
#: Those that a CPU has.
DEFAULT = ("onnxruntime", "openvino", "deepsparse")


def start(names: Sequence[str]) -> dict[str, Engine]:
    """The engines of these names. Misuse for an unknown one, or with the command that installs a missing one."""
    for name in names:
        if name not in ENGINES:
            raise Misuse(f"There is no engine {name!r}.{nearest(name, ENGINES)}")
    started: dict[str, Engine] = {}
    try:
        for name in names:
            started[name] = ENGINES[name]()
    except BaseException:
        for engine in started.values():
            engine.close()
        raise
    return started


def apart(found: Array, wanted: Array) -> float:
    """How far outputs lie apart at most, as a share of the largest wanted one; infinite where they are no numbers."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return math.inf
    largest = float(np.abs(wanted).max())
    difference = float(np.abs(found - wanted).max())
    return difference / largest if largest else difference


def _needed(module: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Misuse(f"{module} is not installed: {install}") from None
