"""Spiking neurons, SEW ResNets and the firing rate: by hand, by independent formulas, and through the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from methods.allocation import prunable_weights
from models.account import account
from models.report import build, section
from models.sew_resnet import Block, Connect, joined, sew_resnet
from models.spiking import Neurons, Spiking
from runner import checkpoint
from runner.compose import compose
from runner.execute import execute
from runner.experiment import make
from runner.identity import run_dir
from runner.measuring import measuring
from runner.records import RunDirectory, read_metrics
from runner.repeat import evaluate
from runner.trainer import Interrupted, Trainer
from runner.world import ALONE, World
from tests.test_contract import state_of

TABLES = Path(__file__).resolve().parents[1] / "results" / "papers" / "lats"
TINY = ["model=sew_resnet_small", "model.width=2", "model.timesteps=3", "dataset=synthetic", "dataset.shape=[3,16,16]",
        "dataset.train_size=20", "dataset.test_size=7", "schedule.batch_size=6", "schedule.epochs=2",
        "schedule.lr=0.05"]  # fmt: skip


def fired(neurons: Neurons, *steps: list[float]) -> list[list[float]]:
    """The spikes of one input's neurons, step by step."""
    return neurons(torch.tensor(steps)).tolist()


# Neurons


def test_integrate_and_fire_by_hand() -> None:
    # First: 0.5, 1.0 fires, 0.25, 1.15 fires. Second: 1.75 fires and leaves 0, not 0.75; then 0.5, 0.25, 1.0 fires.
    steps = [[0.5, 1.75], [0.5, 0.5], [0.25, -0.25], [0.9, 0.75]]
    assert fired(Neurons(4), *steps) == [[0, 1], [1, 0], [0, 0], [1, 1]]


def test_leaky_integrate_and_fire_by_hand() -> None:
    # tau = 4: a quarter of the way to the input. First: 0.75, 0.5625 + 0.75 = 1.3125 fires, 0.75. Second: 0.5, 0.375.
    steps = [[3.0, 2.0], [3.0, 0.0], [3.0, 2.5]]
    assert fired(Neurons(3, "lif", 4.0), *steps) == [[0, 0], [1, 0], [0, 0]]
    steps[2][1] = 2.875  # 0.375 * 3/4 + 2.875 / 4 = 1 fires
    assert fired(Neurons(3, "lif", 4.0), *steps)[2] == [0, 1]


def slope(z: float) -> float:
    """The arc tangent surrogate's derivative at a membrane of 1 + z, alpha = 2."""
    return 2 / 2 / (1 + (math.pi / 2 * 2 * z) ** 2)


def test_the_surrogate_gradient_by_hand() -> None:
    currents = torch.tensor([[0.5], [0.75], [0.125]], requires_grad=True)  # h: 0.5, 1.25 fires, 0.125
    (Neurons(3)(currents) * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    # A current acts on all membranes up to and with the one that fires; the reset cuts what comes after.
    third = 100 * slope(-0.875)
    second = 10 * slope(0.25)
    first = slope(-0.5) + second
    assert currents.grad is not None
    assert currents.grad.flatten().tolist() == pytest.approx([first, second, third], rel=1e-6)
    # Were the reset differentiated, its spike would carry a part of what comes after back to the first current.
    assert currents.grad[0].item() != pytest.approx(slope(-0.5) + second * (1 - 0.5 * slope(-0.5)), rel=1e-3)


@pytest.mark.parametrize(("neuron", "tau"), [("if", 2.0), ("lif", 2.0), ("lif", 3.5)])
def test_spikes_and_gradients_against_the_recurrence_written_out(neuron: Any, tau: float) -> None:
    torch.manual_seed(0)
    steps, x = 5, torch.randn(5 * 3, 4) * 4
    weights = torch.randn(5, 3, 4)
    into, kept = (1.0, 1.0) if neuron == "if" else (1 / tau, 1 - 1 / tau)
    v, charged, spikes = torch.zeros(3, 4), [], []
    for current in x.view(5, 3, 4):
        charged.append(v * kept + current * into)
        spikes.append((charged[-1] >= 1).float())
        v = charged[-1] * (1 - spikes[-1])
    later, expected = torch.zeros(3, 4), torch.zeros(5, 3, 4)
    for t in reversed(range(steps)):  # backpropagation through time
        of_h = weights[t] / (1 + (math.pi * (charged[t] - 1)) ** 2) + later * (1 - spikes[t])
        expected[t], later = of_h * into, of_h * kept
    leaf = x.clone().requires_grad_()
    out = Neurons(steps, neuron, tau)(leaf)
    assert torch.equal(out, torch.cat(spikes)) and 3 < out.sum() < 40
    (out.view(5, 3, 4) * weights).sum().backward()
    torch.testing.assert_close(leaf.grad, expected.view(15, 4))


def test_no_membrane_outlives_a_forward_pass() -> None:
    neurons = Neurons(2)
    assert fired(neurons, [0.75], [0.125]) == [[0], [0]]  # leaves 0.875
    assert fired(neurons, [0.25], [0.25]) == [[0], [0]]
    assert fired(neurons, [0.25, 1], [0.25, 0]) == [[0, 1], [0, 0]]  # another number of neurons
    assert not neurons.state_dict()


def test_a_constant_current_is_the_same_in_every_step() -> None:
    current = torch.randn(3, 2, 4, 4)
    assert torch.equal(Neurons(3).constant(current), Neurons(3)(torch.cat([current] * 3)))


def test_membranes_are_float32_whatever_the_currents() -> None:
    """0.00390625 is lost beside 1 - 2^-8 in bfloat16, and it takes two of them to reach 1."""
    currents = torch.tensor([[1 - 2**-8], [2**-10], [2**-9 + 2**-10]], dtype=torch.bfloat16)
    spikes = Neurons(3)(currents)
    assert spikes.dtype == torch.bfloat16 and spikes.flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize("constant", [False, True])
def test_channels_that_lie_last_stay_last_and_fire_alike(constant: bool) -> None:
    torch.manual_seed(0)
    plain = torch.randn(6, 5, 4, 3).requires_grad_()
    last = plain.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    neurons = Neurons(3)
    outs = [neurons.constant(x) if constant else neurons(x) for x in (plain, last)]
    assert outs[0].is_contiguous() and outs[1].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(*outs) and outs[0].any()
    weights = torch.randn(outs[0].shape)
    for out in outs:
        (out * weights).sum().backward()
    assert plain.grad is not None and last.grad is not None
    torch.testing.assert_close(plain.grad, last.grad)


# SEW ResNet


def if_layer(x: Tensor, steps: int) -> Tensor:
    """Integrate-and-fire, written out for (T N, ...)."""
    v, out = torch.zeros_like(x.view(steps, -1, *x.shape[1:])[0]), []
    for current in x.view(steps, -1, *x.shape[1:]):
        h = v + current
        out.append((h >= 1).to(x.dtype))
        v = torch.where(h >= 1, 0, h)
    return torch.cat(out)


def shaken(model: nn.Module) -> nn.Module:
    """In inference mode, float64, with batch norms that do something and let neurons fire."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"), std=0.3)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
            nn.init.uniform_(module.weight, 0.8, 2)
            nn.init.normal_(module.bias, mean=0.3)
    return model.eval()


def normed(x: Tensor, w: dict[str, Tensor], conv: str, norm: str, stride: int) -> Tensor:
    """A convolution that keeps the resolution but for its stride, and its batch norm."""
    kernel = w[f"{conv}.weight"]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
    mean, var = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
    return F.batch_norm(x, mean, var, w[f"{norm}.weight"], w[f"{norm}.bias"])


@pytest.mark.parametrize("connect", ["ADD", "AND", "IAND"])
def test_what_a_block_makes_of_two_spikes(connect: Connect) -> None:
    both = joined(torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1]), connect).tolist()
    assert both == {"ADD": [0, 1, 1, 2], "AND": [0, 0, 0, 1], "IAND": [0, 1, 0, 0]}[connect]


def test_a_block_that_adds_by_hand() -> None:
    """One channel, one pixel, two steps: the middle of a 3x3 kernel is all that counts."""
    block = Block(1, 1, 1, "ADD", lambda: Neurons(2)).eval()
    for conv, weight in ((block.conv1, 0.5), (block.conv2, 2.0)):
        nn.init.zeros_(conv[0].weight)
        conv[0].weight.data[0, 0, 1, 1] = weight
        conv[1].eps = 0.0
    # Input spikes 1, 1: currents 0.5, 0.5, the first neuron fires in step 2; current 2, the second fires in step 2.
    ones = torch.ones(2, 1, 1, 1)
    assert block.downsample is None
    assert block(ones).flatten().tolist() == [1, 2]
    # A block's sums are inputs like spikes: 0, 2 make currents 0, 1.
    assert block(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)).flatten().tolist() == [0, 3]


def test_a_shortcut_has_neurons_of_its_own_where_the_shape_changes() -> None:
    block = Block(1, 2, 2, "ADD", lambda: Neurons(2)).eval()
    nn.init.zeros_(block.conv2[0].weight)  # the residual branch is silent
    assert block.downsample is not None
    block.downsample[0][0].weight.data = torch.tensor([0.5, 1.0]).view(2, 1, 1, 1)
    block.downsample[0][1].eps = 0.0
    out = block(torch.ones(2, 1, 4, 4))
    assert out.shape == (2, 2, 2, 2)
    assert out[:, 0].unique().tolist() == [0, 1] and not out[0, 0].any()  # 0.5 fires in step 2
    assert (out[:, 1] == 1).all()


@pytest.mark.parametrize("connect", ["ADD", "AND", "IAND"])
@pytest.mark.parametrize(("stem", "blocks"), [("imagenet", (1, 2)), ("pooled", (1, 1, 1)), ("cifar", (2, 1))])
def test_the_whole_network_written_out(stem: Any, blocks: tuple[int, ...], connect: Connect) -> None:
    torch.manual_seed(1)
    model = shaken(sew_resnet(num_classes=5, in_shape=(3, 16, 16), blocks=blocks, stem=stem, width=4, timesteps=3,
                              connect=connect))  # fmt: skip
    x, w = torch.randn(2, 3, 16, 16), model.state_dict()
    h = normed(x, w, "conv1", "bn1", 1 if stem == "cifar" else 2)
    h = if_layer(torch.cat([h] * 3), 3)
    if stem != "cifar":
        h = F.max_pool2d(h, 3, 2, 1)
    for group, number in enumerate(blocks, 1):
        for block in range(number):
            at, stride = f"layer{group}.{block}", 2 if group > 1 and block == 0 else 1
            inner = if_layer(normed(h, w, f"{at}.conv1.0", f"{at}.conv1.1", stride), 3)
            inner = if_layer(normed(inner, w, f"{at}.conv2.0", f"{at}.conv2.1", 1), 3)
            if stride == 2:
                h = if_layer(normed(h, w, f"{at}.downsample.0.0", f"{at}.downsample.0.1", stride), 3)
            h = {"ADD": inner + h, "AND": inner * h, "IAND": h * (1 - inner)}[connect]
    logits = h.mean((2, 3)).view(3, 2, -1).mean(0) @ w["fc.weight"].T + w["fc.bias"]
    torch.testing.assert_close(model(x), logits)
    if connect == "ADD":
        assert h.max() == 1 + sum(blocks) or h.unique().numel() > 2


def test_sew_resnet18_has_the_layers_of_the_papers_tables() -> None:
    with torch.device("meta"):
        model = build(section("sew_resnet18"), (3, 224, 224), 1000)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512  # ResNet-18's: neurons have no parameters
    names = [name.removesuffix(".weight") for name in prunable_weights(model, [])]
    for table in ("table14", "table15"):
        rows = yaml.safe_load((TABLES / f"{table}.yaml").read_text())["rows"]
        printed = [row["metric"].removeprefix("layers:") for row in rows if row.get("metric", "").startswith("layers:")]
        assert sorted(printed) == sorted(names) and len(names) == 21
    assert sum(isinstance(module, Neurons) for module in model.modules()) == 1 + 16 + 3


def test_macs_are_those_of_all_steps() -> None:
    once, four = (
        account(sew_resnet(num_classes=10, in_shape=(3, 32, 32), blocks=(1, 1), stem="pooled", width=4, timesteps=t),
                (3, 32, 32)) for t in (1, 4)
    )  # fmt: skip
    by_hand = {
        "conv1.weight": 4 * 27 * 16 * 16,  # sees the image, once
        "layer1.0.conv1.0.weight": 4 * 36 * 8 * 8,
        "layer1.0.conv2.0.weight": 4 * 36 * 8 * 8,
        "layer2.0.conv1.0.weight": 8 * 36 * 4 * 4,
        "layer2.0.conv2.0.weight": 8 * 72 * 4 * 4,
        "layer2.0.downsample.0.0.weight": 8 * 4 * 4 * 4,
        "fc.weight": 80,  # sees the mean over the steps
    }
    assert {layer.name: layer.macs for layer in once.layers} == by_hand
    steps = {name: 1 if name in ("conv1.weight", "fc.weight") else 4 for name in by_hand}
    assert {layer.name: layer.macs for layer in four.layers} == {name: steps[name] * by_hand[name] for name in by_hand}
    assert four.flops("macs") == sum(steps[name] * macs for name, macs in by_hand.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "timesteps is 1 or more, not 0"),
        ({"neuron": "plif"}, "neuron is 'if' or 'lif', not 'plif'"),
        ({"tau": 1.0}, "tau is a number above 1, not 1"),
        ({"tau": math.inf}, "tau is a number above 1"),
        ({"connect": "add"}, "connect is 'ADD', 'AND' or 'IAND', not 'add'"),
        ({"stem": "7x7"}, "stem is 'imagenet', 'cifar' or 'pooled', not '7x7'"),
        ({"blocks": (1, 0)}, r"number of blocks of every group, 1 or more each, not \[1, 0\]"),
        ({"blocks": ()}, r"number of blocks of every group"),
        ({"width": 0}, "a width of 0 leaves no channel"),
    ],
)
def test_networks_that_cannot_be(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"blocks": (1,), "stem": "cifar", "width": 2}
    with pytest.raises(ValueError, match=message):
        sew_resnet(num_classes=2, in_shape=(3, 8, 8), **{**given, **options})


# The firing rate


class Two(Spiking):
    """Two neurons of one layer and one of a second, over two steps; the inputs are the currents."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Neurons(2), Neurons(2)

    def forward(self, currents: Tensor) -> Tensor:
        return self.second(self.first(currents).sum(1, keepdim=True) / 2)


def test_the_firing_rate_by_hand() -> None:
    model = Two()
    both = torch.tensor([[1.0, 0.5], [1.0, 0.5]])  # the first fires twice, the second in step 2: 3; 0.5, 1.5: 1
    none = torch.tensor([[0.25, 0.25], [0.25, 0.25]])
    model(both)  # before: not counted
    with measuring(model, ALONE) as found:
        assert found == {}
        model(both)
        model(none)
        model(both)
    # Three inputs, three neurons, two steps: 4 + 0 + 4 spikes of 18. The layers' own means, 6/12 and 2/6, say 5/12.
    assert found == {"spikes/firing_rate": 8 / 18}
    model(both)
    assert model.end_measuring().tolist() == [8, 18]
    with measuring(model, ALONE) as found:
        model(none)
    assert found == {"spikes/firing_rate": 0.0}


def test_ranks_add_their_counts_and_not_their_rates() -> None:
    class Pair(World):
        def sum(self, tensor: Tensor | None) -> Tensor:
            assert tensor is not None
            return tensor + torch.tensor([1, 24])

    model = Two()
    with measuring(model, Pair()) as found:
        model(torch.tensor([[1.0, 0.5], [1.0, 0.5]]))
    assert found == {"spikes/firing_rate": 5 / 30}


def test_an_error_while_measuring_is_raised_and_ends_it() -> None:
    model = Two()
    with pytest.raises(KeyError), measuring(model, ALONE):
        raise KeyError
    assert not any(layer.counting for layer in model.neurons())


def test_a_model_that_measures_nothing_measures_nothing() -> None:
    with measuring(nn.Linear(1, 1), ALONE) as found:
        pass
    assert found == {}


def counted(t: Trainer) -> tuple[int, int]:
    """The spikes over the test set and how many there might be, seen from outside."""
    seen: list[Tensor] = []
    layers = [module for module in t.model.modules() if isinstance(module, Neurons)]
    hooks = [layer.register_forward_hook(lambda _, args, out: seen.append(out)) for layer in layers[1:]]
    stem = layers[0]
    fire = stem.fire
    stem.fire = lambda currents: seen.append(out := fire(currents)) or out  # type: ignore[assignment, func-returns-value]
    t.evaluate()
    stem.fire = fire  # type: ignore[method-assign]
    for hook in hooks:
        hook.remove()
    assert {float(value) for spikes in seen for value in spikes.unique()} == {0.0, 1.0}
    return sum(int((spikes == 1).sum()) for spikes in seen), sum(spikes.numel() for spikes in seen)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [3, 1000])
def test_every_epoch_has_the_firing_rate_of_the_whole_test_set(tmp_path: Path, size: int, precision: str) -> None:
    given = [*TINY, f"trainer.eval_batch_size={size}", f"precision={precision}", "memory_format=channels_last"]
    t = Trainer(make(compose([*given, "method=s_lats", "method.final_threshold=0.1"])), RunDirectory(tmp_path))
    history = t.fit()
    assert len(history) == 2 and all(0 < line["spikes/firing_rate"] < 1 for line in history)
    spikes, chances = counted(t)
    # Stem 8x8, first group 4x4, second 2x2, third 1x1; three steps of 7 images.
    assert chances == 3 * 7 * (2 * 64 + 2 * 2 * 16 + 3 * 4 * 4 + 3 * 8)
    assert history[-1]["spikes/firing_rate"] == spikes / chances
    assert 0 < history[-1]["effective/sparsity"] < 1


def test_the_rate_is_in_the_run_directory_and_comes_again_when_evaluated(tmp_path: Path) -> None:
    given = [*TINY, "method=set", "method.count=9", "method.period=2", f"runs={tmp_path}"]
    config = compose(given)
    summary = execute(config, given)
    path = run_dir(tmp_path, config)
    last = read_metrics(path / "metrics.jsonl")[0][-1]
    found = evaluate(path, config, last["step"])
    assert found["spikes/firing_rate"] == last["spikes/firing_rate"] == summary["final"]["spikes/firing_rate"]
    plain = [*given, "model=lenet_300_100", "model.hidden=[4]"]
    plain = [override for override in plain if override not in TINY[:3]]
    assert not any(name.startswith("spikes") for name in execute(compose(plain), plain)["final"])


def halted(given: list[str], path: Path, halts: tuple[int | None, ...]) -> Trainer:
    for turn, halt in enumerate(halts):
        t = Trainer(make(compose(given)), RunDirectory(path))
        t.stop = lambda t=t, halt=halt: t.ctx.step == halt  # type: ignore[misc]
        torch.manual_seed(turn)
        try:
            t.fit()
        except Interrupted:
            assert t.ctx.step == halt
    return t


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("s_lats", ["precision=bf16", "memory_format=channels_last"]),
        pytest.param("dense", [], marks=pytest.mark.slow),
        pytest.param("set", ["precision=fp16", "schedule.optimizer.fused=false"], marks=pytest.mark.slow),
        pytest.param("s_lats", ["model.neuron=lif"], marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_the_same_run(tmp_path: Path, method: str, more: list[str]) -> None:
    given = [*TINY, *more, f"method={method}"]
    whole, parts = (halted(given, tmp_path / str(len(halts)), halts) for halts in ((None,), (3, 5, None)))
    expected, found = state_of(whole), state_of(parts)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert whole.history[-1]["spikes/firing_rate"] == parts.history[-1]["spikes/firing_rate"]
    saved = checkpoint.load(tmp_path / "1" / "checkpoints")
    assert saved is not None
    assert not any("fired" in name or "chances" in name or ".sn" in name for name in saved["model"])


def test_pruning_reaches_stem_shortcuts_and_classifier_and_the_network_learns(tmp_path: Path) -> None:
    given = [*TINY, "method=s_lats", "method.final_threshold=0.4", "schedule.epochs=6"]
    t = Trainer(make(compose(given)), RunDirectory(tmp_path))
    history = t.fit()
    nonzero = t.layers()
    assert {"conv1.weight", "layer3.0.downsample.0.0.weight", "fc.weight"} <= set(nonzero)
    assert all(layer["nonzero"] < layer["total"] for layer in nonzero.values() if layer["total"] > 20)
    assert all(a["effective/sparsity"] <= b["effective/sparsity"] + 0.1 for a, b in pairwise(history))
    assert all(parameter.isfinite().all() for parameter in t.model.parameters())


def test_every_layer_gets_a_gradient_through_the_surrogate() -> None:
    torch.manual_seed(0)
    model = build(section("sew_resnet18") | {"width": 4}, (3, 32, 32), 5)
    F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8) % 5).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.slow
def test_a_compiled_network_fires_alike() -> None:
    """Counting included: what is compiled does not forget to count."""
    torch.manual_seed(0)
    model: Any = shaken(sew_resnet(num_classes=5, in_shape=(3, 16, 16), blocks=(1, 1), stem="pooled", width=4))
    compiled: Callable[[Tensor], Tensor] = torch.compile(model)  # type: ignore[assignment]
    x = torch.randn(4, 3, 16, 16)
    found = []
    for network in (model, compiled, compiled):
        with measuring(model, ALONE) as rates, torch.no_grad():
            found.append((network(x), rates))
    for logits, rates in found[1:]:
        torch.testing.assert_close(logits, found[0][0])
        assert rates == found[0][1] and rates["spikes/firing_rate"] > 0
