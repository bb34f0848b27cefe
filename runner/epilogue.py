"""What a run is asked once more when it has ended: in full precision, and beside its sparse or dense partner."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from methods.base import Method
from runner import checkpoint
from runner.build import build
from runner.device import reset, widened
from runner.experiment import make_model
from runner.identity import Config, key, parent_config
from runner.recorders import layers

if TYPE_CHECKING:
    from runner.trainer import Trainer

log = logging.getLogger("regrow")
Outputs = Callable[[Any], Tensor]  # batch -> logits

#: The parts of a summary that come from here.
PARTS = ("fp32", "pair")


def epilogue(trainer: Trainer, config: Config, parent: Path | None) -> dict[str, dict[str, Any]]:
    """The summary's parts `fp32` and `pair`, where there is something to say; every rank calls it after the last epoch.

    `config`: the run's; `parent`: the run directory of the run that a stage starts from, whose last checkpoint is read.
    Nothing is trained or written, so that it gives the same after any interruption.
    """
    found = {"fp32": full_precision(trainer), "pair": pair(trainer, config, parent)}
    return {name: part for name, part in found.items() if part}


def full_precision(trainer: Trainer) -> dict[str, float]:
    """The test metrics in fp32, as test/NAME, of a network that was trained (and evaluated) in another precision."""
    e = trainer.e
    if e.precision == "fp32":
        return {}
    reset(e.settings.threads, e.settings.deterministic, "fp32")  # no TF32
    try:
        return {f"test/{name}": value for name, value in trainer.evaluate(full=True).items()}
    finally:
        reset(e.settings.threads, e.settings.deterministic, e.precision, e.device.type)


@torch.no_grad()
def pair(trainer: Trainer, config: Config, parent: Path | None) -> dict[str, Any]:
    """How far two networks agree on the test samples, one by one (Peste et al. 2021, appendix B.5 and table 14).

    The two are the run's network as it has ended and its partner: of a method that can compute without its own pruning
    (`Method.unpruned`) the network that does; of a stage its parent's at the parent's end, whichever of its checkpoints
    the stage began from: so AC/DC's fine-tuned dense network meets the sparse one, and gradual pruning of a trained
    network that network.

    agreement: % of the samples with the same top class. cross_entropy: the mean over the samples of
    -sum_c p_c log q_c, nats; p are the probabilities of the denser network, q those of the other (ours: the paper does
    not say which is which, and its code has neither number). cross_entropy_reversed: with p and q exchanged. Of two
    networks as dense as each other p is the parent's. samples; partner: the parent's key, or "unpruned".
    """
    e = trainer.e
    if (outputs := e.task.outputs) is None:
        return {}

    def own(batch: Any) -> Tensor:
        return outputs(trainer.net, batch)

    partner = _unpruned(e.method, own) or _of_the_parent(trainer, config, parent)
    if partner is None:
        return {}
    denser = partner.density >= _density(e.method)
    total: Tensor | None = None
    trainer.net.eval()
    for batch in e.data.test_batches(e.settings.eval_batch_size, trainer.world.rank, trainer.world.size):
        with trainer.autocast():
            ours, theirs = own(batch), partner.outputs(batch)
        sums = compared(theirs, ours) if denser else compared(ours, theirs)
        total = sums if total is None else total + sums
    samples, agree, entropy, exchanged = trainer.world.sum(total).tolist()
    return {
        "agreement": 100 * agree / samples,
        "cross_entropy": entropy / samples,
        "cross_entropy_reversed": exchanged / samples,
        "samples": int(samples),
        "partner": partner.name,
    }


def compared(dense: Tensor, sparse: Tensor) -> Tensor:
    """Of logits of shape (samples, classes), sums in float64: samples, those of the same top class, the cross-entropy
    with the probabilities of `dense` as the target, and with those of `sparse`.
    """
    log_p, log_q = widened(dense).log_softmax(1), widened(sparse).log_softmax(1)
    agree = widened((dense.argmax(1) == sparse.argmax(1)).sum())
    entropies = [-(log_p.exp() * log_q).sum(), -(log_q.exp() * log_p).sum()]
    return torch.stack([agree.new_tensor(len(dense)), agree, *entropies])


@dataclass(frozen=True)
class _Partner:
    """Whom a network is compared with. `density`: the share of prunable weights that it computes with."""

    name: str
    outputs: Outputs
    density: float


def _unpruned(method: Method, own: Outputs) -> _Partner | None:
    if method.unpruned() is None:
        return None

    def outputs(batch: Any) -> Tensor:
        within = method.unpruned()
        assert within is not None
        with within:
            return own(batch)

    return _Partner("unpruned", outputs, 1.0)


def _of_the_parent(trainer: Trainer, config: Config, path: Path | None) -> _Partner | None:
    """The parent's network; None where there is none, or none that knows the same samples."""
    e, above = trainer.e, parent_config(config)
    if above is None or path is None or any(above[part] != config[part] for part in ("dataset", "task")):
        return None
    state = trainer.world.lead(lambda: checkpoint.load(path / "checkpoints"))
    if state is None:
        log.warning("%s has no readable checkpoint any more, so that nothing is compared with it", path)
        return None
    method: Method = build(above["method"], "method")
    model = method.setup(make_model(above, e.data, e.device))
    state = tree_map_only(Tensor, lambda tensor: tensor.to(e.device), {n: state[n] for n in ("model", "method")})
    model.load_state_dict(state["model"])
    method.load_state_dict(state["method"])
    model.eval()
    outputs = e.task.outputs
    assert outputs is not None
    return _Partner(key(above), partial(outputs, model), _density(method))


def _density(method: Method) -> float:
    counts = layers(method).values()
    total = sum(layer["total"] for layer in counts)
    return sum(layer["nonzero"] for layer in counts) / total if total else 1.0
