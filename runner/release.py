"""A finished run's network as it leaves the lab: plain weights, a program without source code, ONNX, a compact copy."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from methods.allocation import prunable_weights
from runner.build import build
from runner.errors import Misuse
from runner.experiment import without_hooks
from runner.export import at_least_two, exported, quietly, zeros
from runner.identity import Config
from runner.records import write_atomic
from runner.repeat import finished
from runner.speedup import compared

WEIGHTS, PROGRAM, ONNX, COMPACT = "weights.pt", "model.pt2", "model.onnx", "compact.pt2"
_BATCH = 128  # images compared at a time


@dataclass(frozen=True)
class Loader:
    """One line of Python that gives a model with the weights, in the folder of the files, and the model it would fill.

    `needs`: the library whose model that is; None of the function that built the run's.
    """

    needs: str | None
    line: str
    make: Callable[[], nn.Module]


def of_run(path: Path, config: Config, steps: int, images: int, out: Path) -> dict[str, Any]:
    """Write the files of a run's network, in fp32, into the folder `out`; what they are and how they were compared.

    Every file is read back first and must give the network's outputs on `images` test images: the weights, loaded into
    a new model, exactly, the others up to rounding; weights of networks of texts are only loaded. What cannot be made
    of this network is left out and says why.
    Misuse when the run's last checkpoint cannot be had, when its weights do not come back, or for a folder that holds
    anything else.
    """
    names = {WEIGHTS, PROGRAM, ONNX, COMPACT, "README.md"}
    if out.exists() and (not out.is_dir() or any(file.name not in names for file in out.iterdir())):
        raise Misuse(f"{out} holds something else already; name another folder with --out.")
    trainer = finished(path, config, steps)
    e = trainer.e
    model = e.method.finalize(without_hooks(trainer.model)).eval().cpu()
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    content = _saved(lambda file: torch.save(state, file))
    again = torch.load(io.BytesIO(content), weights_only=True)

    def batches() -> Iterator[Any]:
        left = images
        for inputs, *_ in e.data.test_batches(_BATCH):
            if left <= 0:
                return
            yield inputs[:left].cpu() if isinstance(inputs, Tensor) else inputs
            left -= _BATCH

    example = next(batches())
    pictures = isinstance(example, Tensor) and example.is_floating_point()
    loaders = []
    for loader in _loaders(config, e.data.num_classes, e.data.in_shape):
        found = _filled(loader, again, model, batches() if pictures else ())
        if loader.needs is None and not found:
            raise Misuse(f"The weights of {path} do not come back as the network they were; nothing is written.")
        loaders += [loader] if found else []
    files: dict[str, bytes] = {WEIGHTS: content}
    outputs: dict[str, Any] = {}
    missing: dict[str, str] = {}
    makers: dict[str, Callable[[], tuple[bytes, Callable[[Tensor], Tensor]]]] = {
        PROGRAM: lambda: _program(model, example),
        ONNX: lambda: _onnx(model, example, e.settings.threads, {"key": e.key, "seed": e.seed}),
        COMPACT: lambda: _program(e.method.finalize(model, compact=True, example=example), example),
    }
    for name, maker in makers.items():
        if not pictures:
            missing[name] = "made of networks of images only"
            continue
        try:
            files[name], there = maker()
            with torch.inference_mode():
                outputs[name] = compared(model, there, batches())
        except (Misuse, ValueError) as error:
            missing[name] = str(error).rstrip(".")
        else:
            if not outputs[name]["equal"]:
                missing[name] = f"its outputs lie apart by {outputs[name]['difference']:.1e} of the largest"
        if name in missing:
            files.pop(name, None)
            outputs.pop(name, None)
    out.mkdir(parents=True, exist_ok=True)
    for name, whole in files.items():
        write_atomic(out / name, whole)
    for name in missing:  # of an earlier release
        (out / name).unlink(missing_ok=True)
    weights = prunable_weights(model)
    return {
        "files": {
            name: {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()} for name, whole in files.items()
        },
        "missing": missing,
        "outputs": outputs,
        "loaders": [{"needs": loader.needs, "line": loader.line} for loader in loaders],
        "in_shape": list(e.data.in_shape),
        "num_classes": e.data.num_classes,
        "input": _input(e.data),
        "parameters": sum(p.numel() for p in model.parameters()),
        "zeros": {name: [int((weight == 0).sum()), weight.numel()] for name, weight in weights.items()},
    }


def _saved(save: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def _input(data: Any) -> dict[str, list[float]] | None:
    """What is subtracted from stored pixel values, and what they are divided by, per channel; None for other data."""
    offset, scale = getattr(data, "offset", None), getattr(data, "scale", None)
    if not isinstance(offset, Tensor) or not isinstance(scale, Tensor):
        return None
    return {"offset": offset.flatten().tolist(), "scale": scale.flatten().tolist()}


def _loaders(config: Config, num_classes: int, in_shape: tuple[int, ...]) -> Iterator[Loader]:
    """The model function of the configuration, then models of torchvision and timm that have the network's name."""
    section = config["model"]
    given = {"num_classes": num_classes, "in_shape": tuple(in_shape)}
    module, _, function = section["_target_"].rpartition(".")
    options = {name: value for name, value in section.items() if name not in ("revision", "_target_")}
    if "name" in options and "catalog" not in module:
        del options["name"]
    # What stands for weights from elsewhere would be fetched for nothing.
    options |= {name: value for name, value in (("pretrained", False), ("weights", None)) if name in options}
    arguments = ", ".join(f"{name}={value!r}" for name, value in {**options, **given}.items())
    load = f"; model.load_state_dict(torch.load({WEIGHTS!r})); model.eval()"
    yield Loader(
        None,
        f"import torch; from {module} import {function}; model = {function}({arguments}){load}",
        lambda: build({**section, **options}, "model", **given),
    )
    name = section["name"]
    there = f"{name!r}, num_classes={num_classes}"
    yield Loader(
        "torchvision",
        f"import torch, torchvision; model = torchvision.models.get_model({there}){load}",
        lambda: _torchvision(name, num_classes),
    )
    yield Loader(
        "timm",
        f"import torch, timm; model = timm.create_model({there}, in_chans={in_shape[0]}){load}",
        lambda: _timm(name, num_classes, in_shape[0]),
    )


def _torchvision(name: str, num_classes: int) -> nn.Module:
    from torchvision import models

    model: nn.Module = models.get_model(name, num_classes=num_classes)
    return model


def _timm(name: str, num_classes: int, channels: int) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=channels)
    return model


def _filled(loader: Loader, state: Mapping[str, Tensor], model: nn.Module, batches: Any) -> bool:
    """Whether the loader's model takes all of the weights and then computes what `model` does."""
    try:
        other = loader.make()
        other.load_state_dict(dict(state))
    except Exception as error:  # no model of that name, other names of weights, other shapes
        if loader.needs is None:
            raise Misuse(f"The weights cannot be loaded again: {str(error).splitlines()[0]}.") from error
        return False
    other.eval()
    with torch.inference_mode():
        return all(torch.equal(model(images), other(images)) for images in batches)


def _program(model: nn.Module, example: Tensor) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """A torch.export program of the network, its batch size open, and what it computes once read back."""
    try:
        with quietly("torch.export"):
            program = torch.export.export(
                model.eval(), (at_least_two(example),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
            )
            for module in program.graph_module.modules():
                for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                    node.meta.pop("stack_trace", None)  # names this machine's source files
            content = _saved(lambda file: torch.export.save(program, file))
            again = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:
        raise Misuse(f"torch.export cannot take it: {str(error).splitlines()[0]}") from error
    return content, again


def _onnx(
    model: nn.Module, example: Tensor, threads: int, facts: Mapping[str, object]
) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    from runner.engines import OnnxRuntime
    from runner.export import INPUT, OUTPUT

    engine = OnnxRuntime()
    proto = exported(model, example, facts)
    zeros(model, proto)
    content = proto.SerializeToString()
    session = engine.session(content, threads)
    return content, lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
