"""Shared by the tests: options, deterministic Hypothesis, tiny configurations, a method on bare weights, masked SGD."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from torch import Tensor

    from methods.base import Method

# Every run of the tests sees the same examples, and a shared machine may be slow.
settings.register_profile("regrow", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("regrow")

# Two epochs of four steps of LeNet-20-10 on 36 noise images (the last batch is smaller): milliseconds.
TINY = (
    "dataset=synthetic",
    "dataset.shape=[1,4,4]",
    "dataset.train_size=36",
    "dataset.test_size=12",
    "model.hidden=[20,10]",
    "schedule.batch_size=10",
    "schedule.epochs=2",
)


# What --method and --busy say, for the modules whose tests they choose and for the ranks that those start.
CHOSEN, TOLD = "REGROW_TEST_METHODS", "REGROW_TEST_BUSY"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--method", action="append", default=[], metavar="NAME", help="only the tests that this method inherits"
    )
    parser.addoption(
        "--busy",
        action="append",
        default=[],
        metavar="OVERRIDE",
        help="with --method, of a package of your own: what makes it act within eight steps (method.period=2)",
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen, busy = config.getoption("--method"), config.getoption("--busy")
    for variable, values in ((CHOSEN, chosen), (TOLD, busy)):
        os.environ.pop(variable, None)
        if values:
            os.environ[variable] = "\n".join(values)
    if chosen:
        from runner.compose import names
        from runner.errors import Misuse, nearest

        try:
            for name in chosen:
                if name not in names("method"):
                    raise Misuse(f"there is no method {name!r}.{nearest(name, names('method'))}")
        except Misuse as misuse:
            raise pytest.UsageError(str(misuse)) from None
    elif busy:
        raise pytest.UsageError("--busy says how a method of --method is to be tested; name one.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --method, only tests of one method stay, and of these the chosen."""
    chosen = config.getoption("--method")
    if not chosen:
        return
    kept, others = [], []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        (kept if {str(params.get("method")), str(params.get("run"))} & set(chosen) else others).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's cache is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGROW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _memory_that_nobody_wrote_shows() -> Iterator[None]:
    """New memory is full of NaN: a run that read it would not repeat itself elsewhere."""
    from runner import device

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "FILL", True)
        yield


@pytest.fixture(scope="module", autouse=True)
def _numbers_as_python_has_them() -> Iterator[None]:
    """A run of a file before may have left the processor flushing denormal numbers to zero."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
    yield


@pytest.fixture
def tiny() -> list[str]:
    """Overrides of a run that takes milliseconds."""
    return list(TINY)


class Bench:
    """A method on bare linear layers fc1, fc2, ... in float64; the test supplies the gradients.

    `step` calls the hooks as the trainer does (that the trainer does so is a test of its own).
    """

    def __init__(
        self,
        method: Method,
        weights: Sequence[Tensor],
        *,
        lr: float = 0.1,
        momentum: float = 0.0,
        nesterov: bool = False,
        steps_per_epoch: int = 5,
        epochs: int = 1000,
        seed: int = 0,
        begin: bool = True,
        known: bool = True,
    ) -> None:
        """`known`: of an optimizer of another class the same steps are taken, but nobody can know that."""
        import torch
        from torch import nn

        from methods.base import Context

        layers = OrderedDict()
        for index, weight in enumerate(weights, start=1):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
            layer.weight.data.copy_(weight)
            layers[f"fc{index}"] = layer
        self.method: Any = method
        self.model = method.setup(nn.Sequential(layers))
        self.weights = [layer.weight for layer in self.model]
        groups = method.param_groups(self.model)
        kind = torch.optim.SGD if known else type("Other", (torch.optim.SGD,), {})
        self.optimizer = kind(groups, lr=lr, momentum=momentum, nesterov=nesterov)
        rng = torch.Generator().manual_seed(seed)
        self.ctx = Context(self.optimizer, rng, total_steps=epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch)
        self.ctx.lr = lr
        if begin:
            method.begin(self.ctx)

    def step(self, grads: Sequence[Tensor]) -> None:
        if self.ctx.step % self.ctx.steps_per_epoch == 0:
            self.method.on_epoch(self.ctx)
        self.method.before_forward(self.ctx)
        self.optimizer.zero_grad(set_to_none=True)
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.grad = grad.clone().to(weight)
        if self.method.before_step(self.ctx):
            self.optimizer.step()
        self.method.after_step(self.ctx)
        self.ctx.step += 1
        self.ctx.epoch = 1 + self.ctx.step // self.ctx.steps_per_epoch

    def values(self) -> list[list[float]]:
        """The flat weights per layer."""
        return [weight.detach().flatten().tolist() for weight in self.weights]

    def kept(self) -> list[list[bool]]:
        """The flat masks per layer."""
        return [mask.flatten().tolist() for mask in self.method.masks().values()]

    def counts(self) -> list[int]:
        return [sum(mask) for mask in self.kept()]


@pytest.fixture
def bench() -> type[Bench]:
    return Bench


class PlainSGD:
    """Masked SGD with (Nesterov) momentum on Python lists, one weight at a time: what the traces are compared with."""

    def __init__(self, weights: list[list[float]], kept: list[list[bool]], lr: float, momentum: float, nesterov: bool):
        self.w = [list(layer) for layer in weights]
        self.kept = [list(layer) for layer in kept]
        self.lr, self.momentum, self.nesterov = lr, momentum, nesterov
        self.buffer: list[list[float]] | None = None

    def step(self, grads: list[list[float]]) -> None:
        g = [[v if k else 0.0 for v, k in zip(*pair, strict=True)] for pair in zip(grads, self.kept, strict=True)]
        if self.buffer is None:
            self.buffer = [list(layer) for layer in g]
        else:
            self.buffer = [
                [self.momentum * b + v for b, v in zip(*pair, strict=True)] for pair in zip(self.buffer, g, strict=True)
            ]
        for layer, w in enumerate(self.w):
            for i in range(len(w)):
                b = self.buffer[layer][i]
                w[i] -= self.lr * (g[layer][i] + self.momentum * b if self.nesterov else b)
                if not self.kept[layer][i]:
                    w[i] = 0.0


@pytest.fixture
def plain_sgd() -> type[PlainSGD]:
    return PlainSGD


@pytest.fixture
def gaussian() -> Callable[..., list[Tensor]]:
    """(shapes, seed) -> float64 normal tensors of these shapes."""
    import torch

    def draw(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
        rng = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]

    return draw
