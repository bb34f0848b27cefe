"""A network as an ONNX model: the zeros of its weights exact zeros there, its outputs the same up to rounding."""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from methods.allocation import prunable_weights
from runner.errors import Misuse
from runner.identity import Config
from runner.records import write_atomic
from runner.repeat import finished
from runner.speedup import compared

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

INSTALL = "pip install 'regrow[engines]'"
INPUT, OUTPUT, BATCH = "input", "output", "batch"
#: Read by every engine here; DeepSparse 1.8 reads no opset above 17 by itself and no IR version above 9.
OPSET, IR_VERSION = 17, 8
_EXPORTED = 18  # the lowest opset that torch's exporter writes
_BATCH = 128  # images compared at a time


def exported(model: nn.Module, example: Tensor, facts: Mapping[str, object] | None = None) -> ModelProto:
    """`model`, in inference mode, as an ONNX model of one input (N, ...) like `example` and one output, N left open.

    Batch norms are folded into the convolutions before them. `facts` go into its metadata; paths and stack traces of
    this machine do not. Misuse when onnx is not installed, or the network cannot be exported.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter works with it)
        from onnx import version_converter
    except ImportError as error:
        raise Misuse(f"Exporting needs {error.name}, which is not installed: {INSTALL}") from None
    if not isinstance(example, Tensor) or not example.is_floating_point():
        raise Misuse("Only networks of images can be exported: this one's input is no tensor of numbers.")
    training = model.training
    try:
        with quietly("torch.onnx"):
            program = torch.onnx.export(
                model.eval(),
                (at_least_two(example),),
                dynamo=True,
                opset_version=_EXPORTED,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                verbose=False,
            )
    except Exception as error:
        raise Misuse(f"This network cannot be exported: {str(error).splitlines()[0].rstrip('.')}.") from error
    finally:
        model.train(training)
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    _pool(proto.graph)
    proto = version_converter.convert_version(proto, OPSET)
    proto.ir_version = IR_VERSION
    proto.producer_name = "regrow"
    for name, value in (facts or {}).items():
        proto.metadata_props.add(key=name, value=str(value))
    onnx.checker.check_model(proto)
    return proto


def at_least_two(example: Tensor) -> Tensor:
    """A batch like `example` of two samples or more: one would be taken for a fixed size."""
    return example.repeat(2, *[1] * (example.ndim - 1))[: max(2, len(example))]


@contextmanager
def quietly(logger: str) -> Iterator[None]:
    """Without torch's warnings, and with nothing but errors from this logger of its own."""
    chatter = logging.getLogger(logger)
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.setLevel(level)


def _strip(proto: ModelProto) -> None:
    """Leave out what the exporter tells of this machine's source files."""
    del proto.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    for entry in (*proto.graph.node, *proto.graph.initializer, *proto.graph.value_info, *proto.graph.input):
        del entry.metadata_props[:]
        entry.doc_string = ""


def _pool(graph: GraphProto) -> None:
    """A mean over both sides of images as the operator of that name, which engines know in every version."""
    from onnx import helper, numpy_helper

    constants = {each.name: each for each in graph.initializer}
    ranks = {each.name: len(each.type.tensor_type.shape.dim) for each in graph.value_info}
    for place, node in enumerate(graph.node):
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
            continue
        axes = sorted(numpy_helper.to_array(constants[node.input[1]]).tolist())
        keep = {each.name: helper.get_attribute_value(each) for each in node.attribute}.get("keepdims", 1)
        if keep and ranks.get(node.input[0]) == 4 and axes in ([-2, -1], [2, 3]):
            pooled = helper.make_node("GlobalAveragePool", [node.input[0]], list(node.output), name=node.name)
            graph.node.remove(node)
            graph.node.insert(place, pooled)
    used = {name for node in graph.node for name in node.input}
    for name, constant in constants.items():
        if name not in used:
            graph.initializer.remove(constant)


def zeros(model: nn.Module, proto: ModelProto) -> dict[str, int]:
    """How many weights of convolutions and linear layers are exactly 0: in `model`, and where they are in `proto`.

    Misuse when a weight that is 0 in the model is not 0, or not to be found by its name, in the exported one.
    """
    from onnx import numpy_helper

    stored = {each.name: each for each in proto.graph.initializer}
    counts = {"model": 0, "exported": 0, "weights": 0}
    for name, weight in prunable_weights(model).items():
        if name not in stored:
            raise Misuse(f"The exported network has no weight {name}, so that its zeros cannot be checked.")
        there = torch.from_numpy(numpy_helper.to_array(stored[name]).copy())
        zero = weight.detach().cpu() == 0
        if there.shape != zero.shape and there.ndim == 2:
            there = there.T
        if there.shape != zero.shape or bool((there[zero] != 0).any()):
            raise Misuse(f"The zeros of {name} are not kept by the export.")
        counts["model"] += int(zero.sum())
        counts["exported"] += int((there == 0).sum())
        counts["weights"] += zero.numel()
    return counts


def of_run(path: Path, config: Config, steps: int, images: int, out: Path) -> dict[str, Any]:
    """Export a finished run's network to `out` once its outputs on `images` test images are torch's; what was compared.

    Nothing is written where they are not. In fp32. Misuse when the run's last checkpoint cannot be had, or its network
    not be exported.
    """
    from runner.engines import OnnxRuntime

    engine = OnnxRuntime()
    trainer = finished(path, config, steps)
    e = trainer.e
    model = e.method.finalize(trainer.model).eval().cpu()
    batches = (batch[0] for batch in e.data.test_batches(min(images, _BATCH)))
    first = next(batches)
    facts = {"key": e.key, "seed": e.seed, "model": config["model"]["name"], "method": config["method"]["name"]}
    proto = exported(model, first.cpu() if isinstance(first, Tensor) else first, facts)
    content = proto.SerializeToString()
    session = engine.session(content, e.settings.threads)

    def there(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: inputs.numpy()})[0])

    counted = zeros(model, proto)
    with torch.inference_mode():
        outputs = compared(model, there, _first(images, chain([first], batches)))
    if outputs["equal"]:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, content)
    return {
        "key": e.key,
        "seed": e.seed,
        "zeros": counted,
        "outputs": outputs,
        "bytes": len(content),
        "opset": next(each.version for each in proto.opset_import if not each.domain),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime")},
    }


def _first(count: int, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The first `count` samples, on the CPU."""
    for batch in batches:
        if count <= 0:
            return
        yield batch[:count].cpu()
        count -= len(batch)
