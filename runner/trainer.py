"""The one training loop. It knows no method, model or dataset by name."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from data.order import derive, epoch_order
from methods.base import Context
from runner import checkpoint
from runner.errors import Misuse
from runner.experiment import Experiment
from runner.optim import L1
from runner.recorders import Recorders, layers
from runner.records import RunDirectory

log = logging.getLogger("regrow")
Progress = Callable[[dict[str, Any]], None]


class Interrupted(Exception):
    """A signal asked the run to stop; it has been saved and can be resumed."""


class Trainer:
    """One run: trains, evaluates every epoch, records, saves, resumes.

    `experiment` holds the built parts. `stop` is asked after every step whether to save and stop.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDirectory,
        progress: Progress | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.e = experiment
        self.directory = directory
        self.progress = progress
        self.stop = stop
        e = experiment
        try:
            self.model = e.method.setup(e.model)
        except ValueError as error:
            raise Misuse(f"method: {error}.") from None
        self.net: nn.Module = torch.compile(self.model) if e.settings.compile else self.model  # type: ignore[assignment]
        self.optimizer = e.schedule.make_optimizer(e.method, self.model)
        self.scaler = torch.amp.GradScaler(e.device.type, enabled=e.precision == "fp16")
        self.learning_rate = e.schedule.learning_rate()
        self.l1 = L1(e.schedule.l1, self.model)
        batches = e.data.train_size / e.schedule.batch_size
        steps = math.floor(batches) if e.schedule.drop_last else math.ceil(batches)
        if steps == 0:
            raise Misuse(f"schedule.batch_size = {e.schedule.batch_size} exceeds the {e.data.train_size} samples.")
        rng = torch.Generator().manual_seed(derive(e.seed, "method"))
        self.ctx = Context(self.optimizer, rng, total_steps=steps * e.schedule.epochs, steps_per_epoch=steps)
        self.recorders = Recorders(e.settings.records, e.method)
        # A parent's masks and prunable weights, for a stage that takes the masks.
        self.adopted: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self.history: list[dict[str, Any]] = []
        self.sums: Tensor | None = None
        self.batch = 0
        self.saved_at = time.monotonic()

    def fit(self) -> list[dict[str, Any]]:
        """Train to the end (from the last checkpoint, if there is one); returns the metrics of every epoch."""
        if not self.resume():
            torch.manual_seed(derive(self.e.seed, "train"))
            if self.adopted is not None:
                try:
                    self.e.method.adopt(*self.adopted)
                except ValueError as error:
                    raise Misuse(f"start.take = mask: {error}.") from None
            self.e.method.begin(self.ctx)
            self.recorders.begin()
        while self.ctx.epoch <= self.e.schedule.epochs and not self.broken:
            self.train_epoch()
            self.ctx.epoch += 1
            self.batch = 0
            self.save(due=self.ctx.epoch > self.e.schedule.epochs or self.broken)
        return self.history

    @property
    def broken(self) -> bool:
        """Whether the last epoch's training loss is not finite."""
        return bool(self.history) and not math.isfinite(self.history[-1]["train/loss"])

    def train_epoch(self) -> None:
        """The rest of the current epoch, its evaluation and its line of metrics."""
        e, ctx = self.e, self.ctx
        began, first = time.perf_counter(), self.batch
        order = epoch_order(e.data.train_size, e.seed, ctx.epoch)
        if self.batch == 0:
            e.method.on_epoch(ctx)
        self.net.train()
        while self.batch < ctx.steps_per_epoch:
            size = e.schedule.batch_size
            start = self.batch * size
            self.read_ahead(order[start + size : start + 2 * size])
            self.step(order[start : start + size])
            self.batch += 1
            ctx.step += 1
            if self.stop():
                self.save(due=True)
                raise Interrupted
            self.save(due=False)
        seconds = time.perf_counter() - began
        trained, self.sums = self.sums, None
        assert trained is not None
        samples = min((ctx.steps_per_epoch - first) * e.schedule.batch_size, e.data.train_size)
        line = {"epoch": ctx.epoch, "step": ctx.step, "lr": ctx.lr}
        line |= {f"train/{name}": value for name, value in e.task.metrics(trained).items()}
        line |= {f"test/{name}": value for name, value in self.evaluate().items()}
        line |= {f"{kind}/sparsity": 1 - kept / total for kind, (kept, total) in self.densities().items()}
        line |= self.recorders.observe(ctx.epoch)
        line |= {"time/epoch_s": time.perf_counter() - began, "time/samples_per_s": samples / seconds}
        self.history.append(line)
        self.directory.append_metrics(line)
        if self.progress is not None:
            self.progress(line)

    def read_ahead(self, indices: Tensor) -> None:
        """Tell the dataset of the batch after this one, so that a streaming one reads while this one trains."""
        for part, chunk in enumerate(indices.chunk(self.e.schedule.accumulate)):
            self.e.data.expect(chunk, self.augmentation_seed(self.ctx.step + 1, part))

    def augmentation_seed(self, step: int, part: int) -> int:
        return derive(self.e.seed, "augment", step, part)

    def step(self, indices: Tensor) -> None:
        """One optimizer step on one global batch."""
        e, ctx, method = self.e, self.ctx, self.e.method
        ctx.lr = self.learning_rate.at(ctx.step / ctx.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = ctx.lr * group.get("lr_scale", 1.0)
        method.before_forward(ctx)
        self.optimizer.zero_grad(set_to_none=True)
        for part, chunk in enumerate(indices.chunk(e.schedule.accumulate)):
            batch = e.data.batch(chunk, self.augmentation_seed(ctx.step, part))
            with self.autocast():
                loss, sums = e.task.loss(self.net, batch)
                if (penalty := method.penalty(ctx)) is not None:
                    loss = loss + penalty
            self.scaler.scale(loss * (len(chunk) / len(indices))).backward()
            self.sums = sums if self.sums is None else self.sums + sums
        self.scaler.unscale_(self.optimizer)
        self.l1.add()
        if method.before_step(ctx):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        method.after_step(ctx)

    def autocast(self) -> AbstractContextManager[Any]:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = kinds.get(self.e.precision)
        return nullcontext() if kind is None else torch.autocast(self.e.device.type, kind)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Test metrics over every test sample once, in inference mode of the model."""
        self.net.eval()
        total: Tensor | None = None
        for batch in self.e.data.test_batches(self.e.settings.eval_batch_size):
            with self.autocast():
                _, sums = self.e.task.loss(self.net, batch)
            total = sums if total is None else total + sums
        assert total is not None
        return self.e.task.metrics(total)

    def densities(self) -> dict[str, tuple[int, int]]:
        """(kept, total) over prunable weights: by the mask and by what the network computes with."""
        layers = self.layers().values()
        total = sum(layer["total"] for layer in layers) or 1
        return {
            "mask": (sum(layer["kept"] for layer in layers) or total * (not layers), total),
            "effective": (sum(layer["nonzero"] for layer in layers) or total * (not layers), total),
        }

    def layers(self) -> dict[str, dict[str, Any]]:
        """Per prunable weight: shape, kept (mask), nonzero (effective weights), total."""
        return layers(self.e.method)

    def save(self, due: bool) -> None:
        """Write a checkpoint if one is due (by time, or because the caller says so)."""
        now = time.monotonic()
        if not due and now - self.saved_at < self.e.settings.checkpoint_seconds:
            return
        self.saved_at = now
        state: dict[str, Any] = {
            "key": self.e.key,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "method": self.e.method.state_dict(),
            "task": self.e.task.state_dict(),
            "records": self.recorders.state_dict(),
            "position": {"step": self.ctx.step, "epoch": self.ctx.epoch, "batch": self.batch, "lr": self.ctx.lr},
            "sums": self.sums,
            "rng": {"method": self.ctx.rng.get_state(), "torch": torch.get_rng_state()},
        }
        if self.e.device.type == "cuda":
            state["rng"]["cuda"] = torch.cuda.get_rng_state(self.e.device)
        checkpoint.save(state, self.directory.checkpoints)

    def resume(self) -> bool:
        """Continue from the directory's last good checkpoint; False when there is none."""
        state = checkpoint.load(self.directory.checkpoints, self.e.device)
        if state is None:
            self.directory.cut_metrics(1)
            return False
        if state["key"] != self.e.key:
            raise Misuse(f"{self.directory.checkpoints} belongs to run {state['key']}, not to {self.e.key}.")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.e.method.load_state_dict(state["method"])
        self.e.task.load_state_dict(state["task"])
        self.recorders.load_state_dict(state.get("records", {}))
        position = state["position"]
        self.ctx.step, self.ctx.epoch, self.batch = position["step"], position["epoch"], position["batch"]
        self.ctx.lr = position["lr"]
        self.sums = state["sums"]
        self.ctx.rng.set_state(state["rng"]["method"].cpu())
        torch.set_rng_state(state["rng"]["torch"].cpu())
        if "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), self.e.device)
        self.history = self.directory.cut_metrics(self.ctx.epoch)
        log.info("resumed at epoch %d, step %d", self.ctx.epoch, self.ctx.step)
        return True
