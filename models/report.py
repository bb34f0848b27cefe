"""The account of an option of conf/model as a table and as a JSON record: the command line of models.account."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.account import CONVENTIONS, Account, account
from models.names import nearest

if TYPE_CHECKING:
    from torch import nn

CONF = Path(__file__).resolve().parents[1] / "conf" / "model"


def section(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """conf/model/<name>.yaml, resolved, with "model.KEY=VALUE" overrides; ValueError for an unknown name or key."""
    from omegaconf import OmegaConf

    options = [path.stem for path in CONF.glob("*.yaml")]
    if name not in options:
        raise ValueError(f"there is no conf/model/{name}.yaml {nearest(name, options)}")
    config = OmegaConf.load(CONF / f"{name}.yaml")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.startswith("model."):
            raise ValueError(f"an override is written as model.KEY=VALUE, not {override!r}")
        key = key.removeprefix("model.")
        if key not in config:
            raise ValueError(f"conf/model/{name}.yaml has no {key!r} {nearest(key, map(str, config))}")
        config = OmegaConf.merge(config, OmegaConf.from_dotlist([f"{key}={value}"]))
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def build(config: Mapping[str, Any], in_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The model of a section of conf/model, freshly initialised; ValueError when its _target_ is not one of models."""
    target = str(config["_target_"])
    if not target.startswith("models."):
        raise ValueError(f"_target_ is {target!r}; a model's builder lives in the package models")
    module, _, function = target.rpartition(".")
    builder = getattr(import_module(module), function)
    # `name` is the section's; the builders of catalogues take it as the architecture's.
    taken = signature(builder).parameters
    options = {key: value for key, value in config.items() if key not in ("name", "revision", "_target_")}
    if "name" in taken:
        options["name"] = config["name"]
    return builder(**options, in_shape=tuple(in_shape), num_classes=num_classes)


def render(title: str, result: Account) -> None:
    """Print an account as a table on the standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("weight", overflow="fold")
    table.add_column("kind")
    for heading in ("shape", "weights", "biases", "MACs", "output"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in result.layers:
        kind = layer.kind if layer.groups == 1 else f"{layer.kind}, {layer.groups} groups"
        shape, output = ("x".join(map(str, sides)) for sides in (layer.shape, layer.output))
        table.add_row(layer.name, kind, shape, f"{layer.weights:,}", f"{layer.biases:,}", f"{layer.macs:,}", output)
    table.add_section()
    table.add_row("all layers", "", "", f"{result.weights:,}", f"{result.biases:,}", f"{result.macs:,}", "")
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no edge to wrap at
        console.width = 200
    console.print(table)
    console.print(f"{result.parameters:,} parameters, {result.batch_norm_parameters:,} of them in batch norms")
    if result.activation_macs:
        console.print(f"{result.activation_macs:,} further MACs between activations (attention), part of no convention")
    for name, convention in CONVENTIONS.items():
        console.print(f"{name:>8}  {result.flops(name):>18,}  {convention.about}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 with one sentence on the standard error when the request makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m models.account",
        description="Parameters, multiply-accumulates and FLOPs of an architecture, per layer and in all.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="an option of conf/model, such as wrn_28_2")
    parser.add_argument("overrides", metavar="model.KEY=VALUE", nargs="*", help="as for a run: model.depth=16")
    parser.add_argument("--in-shape", default="3,32,32", metavar="C,H,W", help="shape of one input (default: 3,32,32)")
    parser.add_argument("--num-classes", type=int, default=10, metavar="N", help="outputs (default: 10)")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the record to FILE")
    parser.add_argument(
        "--tables", action="store_true", help="write the records of all that tables use to results/architectures"
    )
    given = parser.parse_args(arguments)
    if (given.name is None) == (not given.tables):
        parser.error("name one model, or ask for --tables")
    try:
        if given.tables:
            return _write_tables()
        in_shape = _shape(given.in_shape)
        config = section(given.name, given.overrides)
        result = account(build(config, in_shape, given.num_classes), in_shape)
        record = {"model": config, "num_classes": given.num_classes, **result.record()}
        text = json.dumps(record, indent=1) + "\n"
        if given.out:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(text, encoding="utf-8")
    except (ValueError, RuntimeError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        print(f"python -m models.account: {reason}.", file=sys.stderr)
        return 2
    if given.json:
        print(text, end="")
    else:
        render(f"{given.name} at {given.in_shape}, {given.num_classes} classes", result)
    return 0


def _write_tables() -> int:
    from models.records import wanted, write

    every = wanted()
    changed, gone = write(every)
    for name in changed:
        print(f"written: {name}")
    for name in gone:
        print(f"removed: {name}, which no cell uses")
    print(f"{len(every)} architecture(s), {len(changed)} of them new or changed.")
    return 0


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts) or len(parts) not in (1, 3):
        raise ValueError(
            f"--in-shape is C,H,W, three positive whole numbers such as 3,32,32, or the tokens of a text's segment; "
            f"not {text!r}"
        )
    return tuple(int(part) for part in parts)
