"""What a checkpoint holds: all that the rest of a run depends on, on every rank. Tensors and plain values only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from runner.trainer import Trainer

log = logging.getLogger("regrow")


def take(trainer: Trainer) -> dict[str, Any]:
    """The state of a run between two steps: what all ranks have in common, rank 0's own, and under "others" theirs."""
    t = trainer
    own, *others = t.world.gather(_own(t))
    return {
        "key": t.e.key,
        "model": t.model.state_dict(),
        "optimizer": t.optimizer.state_dict(),
        "scaler": t.scaler.state_dict(),
        "method": t.e.method.state_dict(),
        "records": t.recorders.state_dict(),
        "kept": t.kept.state_dict(),
        "position": {
            "step": t.ctx.step,
            "epoch": t.ctx.epoch,
            "batch": t.batch,
            "lr": t.ctx.lr,
            "epochs": t.e.schedule.epochs,
        },
        **own,
        "others": others,
    }


def weights(trainer: Trainer) -> dict[str, Any]:
    """What a stage may start from."""
    return {"model": trainer.model.state_dict(), "method": trainer.e.method.state_dict()}


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Go on from a state: bit for bit with as many ranks as it was taken with, else but for random numbers."""
    t = trainer
    t.kept.load_state_dict(state.get("kept", {}))
    state = {name: part for name, part in state.items() if name != "kept"}  # which stays where it is: on the CPU
    state = tree_map_only(Tensor, lambda tensor: tensor.to(t.e.device), state)
    t.model.load_state_dict(state["model"])
    t.optimizer.load_state_dict(state["optimizer"])
    t.scaler.load_state_dict(state["scaler"])
    t.e.method.load_state_dict(state["method"])
    t.recorders.load_state_dict(state.get("records", {}))
    position = state["position"]
    t.ctx.step, t.ctx.epoch, t.batch = position["step"], position["epoch"], position["batch"]
    t.ctx.lr = position["lr"]
    if (epochs := position.get("epochs", t.e.schedule.epochs)) != t.e.schedule.epochs:  # a budget of FLOPs
        t.lengthen(epochs)
    t.ctx.rng.set_state(state["rng"]["method"].cpu())
    everybodys = [state, *state.get("others", [])]
    if len(everybodys) == t.world.size:
        _restore_own(t, everybodys[t.world.rank])
        return
    log.warning("begun with %d rank(s) and resumed with %d: not bit for bit", len(everybodys), t.world.size)
    if t.world.first:
        sums = [own["sums"] for own in everybodys if own["sums"] is not None]
        _restore_own(t, {**state, "sums": torch.stack(sums).sum(0) if sums else None})
    else:
        torch.manual_seed(t.own_seed("train", t.ctx.step))


def _own(t: Trainer) -> dict[str, Any]:
    """What may be another on every rank."""
    rng = {"method": t.ctx.rng.get_state(), "torch": torch.get_rng_state()}
    if t.e.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(t.e.device)
    statistics = t.replicas.statistics()
    return {"task": t.e.task.state_dict(), "sums": t.sums, "rng": rng, "statistics": statistics}


def _restore_own(t: Trainer, own: dict[str, Any]) -> None:
    t.e.task.load_state_dict(own["task"])
    t.sums = own["sums"]
    t.model.load_state_dict(own.get("statistics", {}), strict=False)
    torch.set_rng_state(own["rng"]["torch"].cpu())
    if "cuda" in own["rng"] and t.e.device.type == "cuda":
        torch.cuda.set_rng_state(own["rng"]["cuda"].cpu(), t.e.device)
