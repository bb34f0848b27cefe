"""The one training loop. It knows no method, model or dataset by name."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from data.base import Dataset
from data.order import derive
from methods.base import Context
from methods.schedules import whole_epochs
from runner import checkpoint, snapshot
from runner.device import synchronize
from runner.errors import Misuse
from runner.experiment import Experiment
from runner.gradients import grad_samples, mean_grads
from runner.kept import Kept
from runner.ledger import Ledger
from runner.measuring import measuring
from runner.optim import L1, begin_momentum
from runner.recorders import Recorders, layers
from runner.records import RunDirectory
from runner.replicas import Replicas
from runner.timing import Clocks
from runner.world import ALONE, World

log = logging.getLogger("regrow")
Progress = Callable[[dict[str, Any]], None]
#: Told after every step how many have been taken, how many an epoch has, and how many there are.
Tick = Callable[[int, int, int], None]


class Interrupted(Exception):
    """A signal asked the run to stop; it has been saved and can be resumed."""


class Trainer:
    """One run: trains, evaluates every epoch, records, saves, resumes.

    `experiment` holds the built parts. `stop` is asked after every step whether to save and stop. All ranks of `world`
    have a trainer each and call the same methods in the same order; rank 0's alone touches the directory and reports.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDirectory,
        progress: Progress | None = None,
        stop: Callable[[], bool] = lambda: False,
        world: World = ALONE,
    ) -> None:
        self.e = experiment
        self.directory = directory
        self.progress = progress
        self.tick: Tick | None = None
        self.stop = stop
        self.world = world
        e = experiment
        self.ledger = Ledger.of(e.model, e.data.in_shape)
        try:
            self.model = e.method.setup(e.model)
        except ValueError as error:
            raise Misuse(f"method: {error}.") from None
        self.net = world.replicate(self.model)
        if e.settings.compile:
            self.net = torch.compile(self.net)  # type: ignore[assignment]
        self.optimizer = e.schedule.make_optimizer(e.method, self.model)
        self.scaler = torch.amp.GradScaler(e.device.type, enabled=e.precision == "fp16")
        if self.scaler.is_enabled():
            begin_momentum(self.optimizer)
        self.learning_rate = e.schedule.learning_rate()
        self.l1 = L1(e.schedule.l1, self.model)
        batches = e.data.train_size / e.schedule.batch_size
        steps = math.floor(batches) if e.schedule.drop_last else math.ceil(batches)
        if steps == 0:
            raise Misuse(f"schedule.batch_size = {e.schedule.batch_size} exceeds the {e.data.train_size} samples.")
        rng = torch.Generator().manual_seed(derive(e.seed, "method"))
        self.ctx = Context(self.optimizer, rng, total_steps=steps * e.schedule.epochs, steps_per_epoch=steps)
        me = weakref.proxy(self)  # in no circle: what a run held is free when it ends
        self.ctx.mean_grads, self.ctx.grad_samples = partial(mean_grads, me), partial(grad_samples, me)
        self.clocks = Clocks(partial(synchronize, e.device))
        self.ctx.timed = self.clocks.timed
        self.ctx.scratch = e.settings.scratch_gib * 2**30
        self.ctx.learning_rate = lambda step: me.learning_rate.at(step / steps)
        self.replicas = Replicas(world, self.model, self.optimizer, e.method, self.ctx)
        last = torch.arange((steps - 1) * e.schedule.batch_size, min(steps * e.schedule.batch_size, e.data.train_size))
        self.replicas.check_statistics(min(map(len, last.chunk(e.schedule.accumulate))))
        self.recorders = Recorders(e.settings.records, e.method)
        self.resident = type(e.data).expect is Dataset.expect
        self.kept = Kept(f"test/{e.task.metric}", up=e.task.directions[e.task.metric] == "up")
        # A parent's masks and prunable weights, for a stage that takes the masks.
        self.adopted: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self.history: list[dict[str, Any]] = []
        self.sums: Tensor | None = None
        self.batch = 0
        self.saved_at = time.monotonic()

    def fit(self) -> list[dict[str, Any]]:
        """Train to the end (from the last checkpoint, if there is one); returns the metrics of every epoch."""
        if not self.resume():
            torch.manual_seed(self.own_seed("train"))
            if self.adopted is not None:
                try:
                    self.e.method.adopt(*self.adopted)
                except ValueError as error:
                    raise Misuse(f"start.take = mask: {error}.") from None
            try:
                self.e.method.begin(self.ctx)
            except ValueError as error:
                raise Misuse(f"method: {error}.") from None
            self.afford()
            self.recorders.begin()
        while self.ctx.epoch <= self.e.schedule.epochs and not self.broken:
            self.train_epoch()
            self.ctx.epoch += 1
            self.batch = 0
            if self.ctx.epoch > self.e.schedule.epochs or self.broken or self.world.lead(self.is_save_due):
                self.save()
        return self.history

    def afford(self) -> None:
        """With a budget of FLOPs: as many epochs as it pays for, of the method as it stands before the first step."""
        if self.e.schedule.budget == "flops":
            try:
                factor = self.ledger.affordable(self.e.method, self.layers())
            except ValueError as error:
                raise Misuse(f"schedule.budget = flops: {error}.") from None
            self.lengthen(whole_epochs(self.e.schedule.epochs, factor))

    def lengthen(self, epochs: int) -> None:
        """Train so many epochs instead; the learning rate's own stretch with them."""
        self.e.schedule = self.e.schedule.stretched(epochs)
        self.learning_rate = self.e.schedule.learning_rate()
        self.ctx.total_steps = self.ctx.steps_per_epoch * epochs

    @property
    def broken(self) -> bool:
        """Whether the last epoch's training loss is not finite."""
        return bool(self.history) and not math.isfinite(self.history[-1]["train/loss"])

    def train_epoch(self) -> None:
        """The rest of the current epoch, its evaluation and its line of metrics."""
        e, ctx = self.e, self.ctx
        began, first = time.perf_counter(), self.batch
        order = e.data.order(e.seed, ctx.epoch)
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
            if self.tick is not None:
                self.tick(ctx.step, ctx.steps_per_epoch, ctx.total_steps)
            stop, due = self.replicas.decide(self.stop(), self.is_save_due())
            if stop or due:
                self.save()
            if stop:
                raise Interrupted
        seconds = time.perf_counter() - began
        trained, self.sums = self.world.sum(self.sums), None
        self.replicas.average_statistics()
        self.replicas.compare_everything()
        whole = min(ctx.steps_per_epoch * e.schedule.batch_size, e.data.train_size)  # samples of an epoch
        samples = max(0, whole - first * e.schedule.batch_size)
        line = {"epoch": ctx.epoch, "step": ctx.step, "lr": ctx.lr}
        line |= {f"train/{name}": value for name, value in e.task.metrics(trained).items()}
        with measuring(self.model, self.world) as own:
            line |= {f"test/{name}": value for name, value in self.evaluate().items()}
        line |= own
        if (unpruned := e.method.unpruned()) is not None:
            with unpruned:
                line |= {f"unpruned/{name}": value for name, value in self.evaluate().items()}
        for probe in e.data.probes:
            line |= {f"{probe}{name}": value for name, value in self.evaluate(probe).items()}
        counts = self.layers()
        densities = self.densities(counts)
        line |= {f"{kind}/sparsity": 1 - kept / total for kind, (kept, total) in densities.items()}
        kept, total = densities["mask"]
        line["mask/parameters"] = sum(p.numel() for p in self.model.parameters()) - (total - kept)
        line |= self.ledger.line(e.method, counts, whole, self.history)
        line |= self.recorders.observe(ctx.epoch)
        line |= {"time/epoch_s": time.perf_counter() - began, "time/samples_per_s": samples / seconds}
        # An interrupted epoch's first part was another process's: as long as the rest at its rate.
        line["time/training_s"] = self.seconds + (seconds * whole / samples if samples else seconds)
        line |= self.clocks.line()
        self.history.append(self.world.lead(lambda: self.record(line)))
        if (name := e.method.keeps()) is not None:
            self.kept.offer(name, self.history[-1], lambda: snapshot.weights(self))

    def record(self, line: dict[str, Any]) -> dict[str, Any]:
        """Write an epoch's line and tell of it; rank 0's line, since times differ, is that of all ranks."""
        self.directory.append_metrics(line)
        if self.progress is not None:
            self.progress(line)
        return line

    def read_ahead(self, indices: Tensor) -> None:
        """Tell the dataset of the batch after this one, so that a streaming one reads while this one trains."""
        if self.resident or not len(indices):
            return  # nothing to read, or the epoch ends with this one
        for part, chunk in enumerate(indices.chunk(self.e.schedule.accumulate)):
            mine, _ = self.world.share(chunk)
            self.e.data.expect(mine, self.own_seed("augment", self.ctx.step + 1, part))

    @property
    def seconds(self) -> float:
        """Spent on the steps of the epochs before, without evaluations; of old lines only their whole time is known."""
        lines = self.history
        return lines[-1].get("time/training_s", sum(line["time/epoch_s"] for line in lines)) if lines else 0.0

    def own_seed(self, *names: str | int) -> int:
        """A seed of this rank's own; rank 0's is that of a run without other ranks."""
        return derive(self.e.seed, *names, *(() if self.world.first else (self.world.rank,)))

    def step(self, indices: Tensor) -> None:
        """One optimizer step on one global batch."""
        e, ctx, method = self.e, self.ctx, self.e.method
        ctx.lr = self.learning_rate.at(ctx.step / ctx.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = ctx.lr * group.get("lr_scale", 1.0)
        method.before_forward(ctx)
        for group in self.optimizer.param_groups:  # as zero_grad does, without its part in the profiler
            for parameter in group["params"]:
                parameter.grad = None
        chunks = indices.chunk(e.schedule.accumulate)
        for part, chunk in enumerate(chunks):
            mine, weight = self.world.share(chunk)
            batch = e.data.batch(mine, self.own_seed("augment", ctx.step, part))
            with self.world.unsynchronised(self.net) if part + 1 < len(chunks) else nullcontext():
                with self.autocast():
                    loss, sums = e.task.loss(self.net, batch)
                    if weight != 1:
                        loss = loss * weight
                    if (penalty := method.penalty(ctx)) is not None:
                        loss = loss + penalty
                self.scaler.scale(loss if len(chunks) == 1 else loss * (len(chunk) / len(indices))).backward()
            if weight:
                self.sums = sums if self.sums is None else self.sums + sums
        self.scaler.unscale_(self.optimizer)
        self.l1.add()
        if e.schedule.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), e.schedule.clip)
        if method.before_step(ctx):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        method.after_step(ctx)

    def autocast(self, full: bool = False) -> AbstractContextManager[Any]:
        """The run's precision; `full`: that of its parameters."""
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = kinds.get(self.e.precision)
        return nullcontext() if kind is None or full else torch.autocast(self.e.device.type, kind)

    @torch.no_grad()
    def evaluate(self, probe: str | None = None, full: bool = False) -> dict[str, float]:
        """Metrics over every test sample, or one of a dataset's probes, once, in inference mode of the model.

        `full`: without the run's autocast; in batches of half the size, since numbers are of twice the bytes.
        """
        self.net.eval()
        total: Tensor | None = None
        how = max(1, self.e.settings.eval_batch_size // (1 + full)), self.world.rank, self.world.size
        for batch in self.e.data.test_batches(*how) if probe is None else self.e.data.probe_batches(probe, *how):
            with self.autocast(full):
                _, sums = self.e.task.loss(self.net, batch)
            total = sums if total is None else total + sums
        return self.e.task.metrics(self.world.sum(total))

    def densities(self, counts: dict[str, dict[str, Any]] | None = None) -> dict[str, tuple[int, int]]:
        """(kept, total) over prunable weights: by the mask and by what the network computes with."""
        layers = (self.layers() if counts is None else counts).values()
        total = sum(layer["total"] for layer in layers) or 1
        return {
            "mask": (sum(layer["kept"] for layer in layers) or total * (not layers), total),
            "effective": (sum(layer["nonzero"] for layer in layers) or total * (not layers), total),
        }

    def layers(self) -> dict[str, dict[str, Any]]:
        """Per prunable weight: shape, kept (mask), nonzero (effective weights), total."""
        return layers(self.e.method)

    def is_save_due(self) -> bool:
        """Whether the last checkpoint is old, by rank 0's clock."""
        return self.world.first and time.monotonic() - self.saved_at >= self.e.settings.checkpoint_seconds

    def save(self) -> None:
        """Write a checkpoint."""
        self.saved_at = time.monotonic()
        self.replicas.compare_everything()
        state = snapshot.take(self)
        self.world.lead(lambda: self.write(state))

    def write(self, state: dict[str, Any]) -> None:
        self.directory.check_hold()
        checkpoint.save(state, self.directory.checkpoints)

    def resume(self) -> bool:
        """Continue from the directory's last good checkpoint; False when there is none."""
        state = self.world.lead(lambda: checkpoint.load(self.directory.checkpoints))
        if state is not None:
            if state["key"] != self.e.key:
                raise Misuse(f"{self.directory.checkpoints} belongs to run {state['key']}, not to {self.e.key}.")
            snapshot.restore(self, state)
        self.history = self.world.lead(lambda: self.directory.cut_metrics(self.ctx.epoch))
        if state is not None:
            if self.history:
                self.clocks.resume(self.history[-1])
            log.info("resumed at epoch %d, step %d", self.ctx.epoch, self.ctx.step)
        return state is not None
