"""SparseVD: the divergence by hand and by integration, the moments of outputs, the pruning of inference."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.sparsevd import SparseVD
from methods.variational import EPSILON, Variational, divergence, randomise, settle
from runner.compose import compose
from runner.errors import Misuse
from runner.experiment import make
from runner.records import RunDirectory
from runner.trainer import Trainer

EULER = 0.57721566490153286


def by_hand(log_alpha: float) -> float:
    """Molchanov et al. 2017, equation 14, with the printed constants."""
    sigmoid = 1 / (1 + math.exp(-(1.87320 + 1.48695 * log_alpha)))
    return -(0.63576 * sigmoid - 0.5 * math.log(1 + math.exp(-log_alpha)) - 0.63576)


def integrated(log_alpha: float) -> float:
    """E log|1 + sqrt(alpha) z| - 1/2 log alpha - E log|z|, z ~ N(0, 1): the divergence, 0 at infinity (equation 11).

    The midpoint rule, fine around the logarithm's singularity: x = 1 + sqrt(alpha) z is substituted by x = sign t^3.
    """
    root = math.exp(log_alpha / 2)
    far = (1 + 12 * root) ** (1 / 3)
    cells = 400_000
    t = ((torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 - 1) * far
    x = t**3
    density = torch.exp(-0.5 * ((x - 1) / root) ** 2) / (root * math.sqrt(2 * math.pi))
    mean = float((x.abs().log() * density * 3 * t**2).sum() * 2 * far / cells)
    return mean - log_alpha / 2 + (EULER + math.log(2)) / 2


@pytest.mark.parametrize("log_alpha", [-8.0, -3.0, -1.0, 0.0, 0.5, 1.0, 3.0, 8.0])
def test_the_divergence_is_the_papers_and_near_the_exact_one(log_alpha: float) -> None:
    found = float(divergence(torch.tensor(log_alpha, dtype=torch.float64)))
    assert found == pytest.approx(by_hand(log_alpha), abs=1e-12)
    assert found == pytest.approx(integrated(log_alpha), abs=0.01)


def test_the_divergence_at_one() -> None:
    """alpha = 1: 0.63576 (1 - sigmoid(1.87320)) + 1/2 log 2 = 0.63576 x 0.133187... + 0.346574."""
    assert float(divergence(torch.zeros(()))) == pytest.approx(0.63576 / (1 + math.exp(1.8732)) + 0.34657359, abs=1e-6)
    assert float(divergence(torch.tensor(8.0))) == pytest.approx(0.000168, abs=1e-5)


def layer_of(kind: str, log_sigma2: float = -3.0) -> Any:
    torch.manual_seed(0)
    layer: Any = {
        "linear": nn.Linear(5, 4),
        "conv": nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float32),
        "conv1d": nn.Conv1d(3, 4, 3, bias=False, padding=2, padding_mode="circular"),
    }[kind]
    layer = randomise(layer.double(), "layer", log_sigma2, threshold=3.0, clip=50.0)
    with torch.no_grad():
        layer.log_sigma2 += torch.randn_like(layer.log_sigma2)
    return layer


INPUTS = {"linear": (3, 5), "conv": (2, 4, 5, 5), "conv1d": (2, 3, 6)}


@pytest.mark.parametrize("kind", INPUTS)
def test_outputs_have_the_mean_and_variance_of_random_weights(kind: str) -> None:
    """Against layers whose every weight is drawn: the sum of independent Gaussians, each output on its own."""
    layer = layer_of(kind)
    x = torch.randn(INPUTS[kind], dtype=torch.float64)
    count = 20_000
    with torch.no_grad():
        drawn = layer(x.repeat(count, *[1] * (x.dim() - 1))).unflatten(0, (count, len(x)))
        theta, sigma2 = layer.weight.clone(), layer.log_sigma2.exp()
        plain = copy.deepcopy(layer)
        plain.eval()
        plain.threshold = math.inf
        mean = plain(x)
        # The variance by the layer's own linearity, one weight at a time.
        variance = torch.zeros_like(mean)
        for index in range(theta.numel()):
            plain.weight.zero_()
            plain.weight.view(-1)[index] = 1
            share = plain(x) if plain.bias is None else plain(x) - plain.bias.view(-1, *[1] * (x.dim() - 2))
            variance += sigma2.flatten()[index] * share.square()
    # Five standard errors of 20,000 draws.
    assert bool(((drawn.mean(0) - mean).abs() < 5 * (variance / count).sqrt()).all())
    assert bool(((drawn.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all())


def test_a_linear_layers_output_by_hand() -> None:
    """y = theta x + sqrt(sigma^2 x^2 + epsilon) z, with log alpha clipped where it is beyond."""
    layer: Any = randomise(nn.Linear(2, 2), "fc", 0.0, threshold=3.0, clip=2.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.1]]))
        layer.bias.copy_(torch.tensor([0.25, 0.0]))
        layer.log_sigma2.copy_(torch.log(torch.tensor([[0.5, 4.0], [0.01, 1.0]])))
    # log alpha: log 0.5, 0, log 0.04 = -3.2 -> -2, log 100 = 4.6 -> 2.
    sigma2 = [[0.5, 4.0], [0.25 * math.exp(-2), 0.01 * math.exp(2)]]
    x = torch.tensor([[3.0, -1.0]])
    torch.manual_seed(1)
    z = torch.randn(1, 2)
    torch.manual_seed(1)
    found = layer(x).detach()
    for unit, mean in enumerate((5.25, 1.4)):
        deviation = math.sqrt(9 * sigma2[unit][0] + sigma2[unit][1] + EPSILON)
        assert float(found[0, unit]) == pytest.approx(mean + deviation * float(z[0, unit]), rel=1e-5)


def test_gradients_by_finite_differences() -> None:
    """Of outputs at a fixed draw, and of the divergence, with respect to theta and log sigma^2."""
    layer = layer_of("linear")
    x = torch.randn(3, 5, dtype=torch.float64)

    def loss(weight: Tensor, log_sigma2: Tensor) -> Tensor:
        layer.weight, layer.log_sigma2 = nn.Parameter(weight), nn.Parameter(log_sigma2)
        del layer._parameters["weight"], layer._parameters["log_sigma2"]
        layer.__dict__.update(weight=weight, log_sigma2=log_sigma2)
        torch.manual_seed(3)
        return layer(x).square().sum() + divergence(layer.clipped()).sum()  # type: ignore[no-any-return]

    given = [p.detach().clone().requires_grad_() for p in (layer.weight, layer.log_sigma2)]
    assert torch.autograd.gradcheck(loss, given)


def test_inference_prunes_where_log_alpha_reaches_the_threshold() -> None:
    layer: Any = randomise(nn.Linear(4, 1, bias=False), "fc", 0.0, threshold=3.0, clip=1.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0, -0.1, 0.0]]))
        layer.log_sigma2.copy_(torch.tensor([[2.999, 3.001, 2.999 + 2 * math.log(0.1), -30.0]]))
    layer.eval()
    assert layer.sparse().tolist() == [[1.0, 0.0, pytest.approx(-0.1), 0.0]]
    assert float(layer(torch.tensor([[1.0, 10.0, 100.0, 1000.0]])).detach()) == pytest.approx(1 - 10)
    layer.log_sigma2.data[0, 3] = 3.0 + math.log(EPSILON) + 0.01  # a weight of 0 has an alpha of its own
    assert [round(v, 2) for v in layer.log_alpha()[0].tolist()] == [3.0, 3.0, 3.0, 3.01]


@pytest.mark.parametrize("kind", INPUTS)
def test_a_settled_layer_is_plain_and_computes_the_same(kind: str) -> None:
    layer = layer_of(kind, log_sigma2=-2.0).eval()
    x = torch.randn(INPUTS[kind], dtype=torch.float64)
    before, sparse = layer(x), layer.sparse()
    assert 0 < int(sparse.count_nonzero()) < sparse.numel()
    settle(layer)
    assert type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d) and not isinstance(layer, Variational)
    assert set(dict(layer.named_parameters())) <= {"weight", "bias"}
    assert torch.equal(layer.weight, sparse) and torch.equal(layer(x), before)


def test_a_dense_models_state_loads_and_leaves_the_variances() -> None:
    layer: Any = randomise(nn.Linear(2, 1), "fc", -4.0, threshold=3.0, clip=8.0)
    state = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}
    layer.load_state_dict(state)
    assert layer.weight.tolist() == [[1.0, 2.0]] and layer.log_sigma2.tolist() == [[-4.0, -4.0]]
    layer.load_state_dict({**state, "log_sigma2": torch.tensor([[0.0, 1.0]])})
    assert layer.log_sigma2.tolist() == [[0.0, 1.0]] and list(state) == ["weight", "bias"]


def test_a_layer_of_another_class_is_refused() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    method = SparseVD(kl_weight=1.0)
    with pytest.raises(ValueError, match="the layer 1 is a Scaled, whose outputs' variance is not known"):
        method.setup(nn.Sequential(nn.Linear(2, 2), Scaled(2, 2)))


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (10, 0.0), (15, 0.125), (20, 0.25), (40, 0.75), (50, 1.0), (99, 1.0)]
)
def test_the_weight_rises_linearly(bench: Any, step: int, expected: float) -> None:
    """From epoch 1 to epoch 5, of 10 steps each."""
    method = SparseVD(kl_weight=0.3, start_epoch=1, end_epoch=5)
    method.check(5)
    b = bench(method, [torch.ones(2, 3)], steps_per_epoch=10)
    b.ctx.step = step
    assert method.ramped(b.ctx) == pytest.approx(0.3 * expected)
    penalty = method.penalty(b.ctx)
    # log alpha is -10 at weights of 1, clipped to -8.
    assert (penalty is None) == (expected == 0)
    if penalty is not None:
        assert float(penalty.detach()) == pytest.approx(0.3 * expected * 6 * by_hand(-8.0))


def test_without_a_ramp_all_of_the_weight_is_there_at_once(bench: Any) -> None:
    method = SparseVD(kl_weight=0.3)
    assert method.ramped(bench(method, [torch.ones(1, 1)]).ctx) == 0.3


@pytest.mark.parametrize(("start", "end"), [(3.0, 2.0), (0.0, 11.0)])
def test_a_ramp_outside_of_the_run_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="does not lie within the run's 10 epochs, or ends before it starts"):
        SparseVD(kl_weight=1.0, start_epoch=start, end_epoch=end).check(10)


def test_weight_decay_spares_the_variances(bench: Any) -> None:
    b = bench(SparseVD(kl_weight=1.0), [torch.ones(2, 2), torch.ones(1, 2)])
    thetas, variances = b.method.param_groups(b.model)
    assert variances["weight_decay"] == 0 and "weight_decay" not in thetas
    assert [id(p) for p in variances["params"]] == [id(layer.log_sigma2) for layer in b.model]
    assert [id(p) for p in thetas["params"]] == [id(layer.weight) for layer in b.model]
    assert all(float(layer.log_sigma2.detach()[0, 0]) == pytest.approx(-10) for layer in b.model)


GIVEN = ["method=sparsevd", "dataset.train_subset=300", "model.hidden=[30,20]", "schedule.batch_size=30"]


def trainer(tmp_path: Path, *more: str) -> Trainer:
    return Trainer(make(compose([*GIVEN, *more])), RunDirectory(tmp_path))


@pytest.mark.slow
def test_a_larger_weight_prunes_more_and_what_is_needed_stays(tmp_path: Path) -> None:
    """The knob's direction, on the digits: useless pixels go first."""
    sparsities = []
    for weight in ("0", "1e-4", "1e-3"):
        given = ["schedule.epochs=12", "schedule.lr=0.1", f"method.kl_weight={weight}", "method.initial_variance=1e-3"]
        t = trainer(tmp_path / weight, *given)
        history = t.fit()
        sparsities.append(history[-1]["effective/sparsity"])
        assert history[-1]["mask/sparsity"] == 0
        if weight == "1e-4":
            assert history[-1]["test/accuracy"] > 80
    assert sparsities[0] < sparsities[1] - 0.1 < sparsities[2] - 0.2, sparsities


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_draws_the_same_within_its_own(precision: str) -> None:
    """The variance of weights of 1e-4 is 1e-8 alpha: below what fp16 has."""
    torch.manual_seed(0)
    layer: Any = randomise(nn.Linear(8, 3, bias=False), "fc", -18.0, threshold=3.0, clip=8.0)
    x = torch.randn(4, 8)
    with torch.no_grad():
        layer.weight.mul_(1e-3)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    spread = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.no_grad(), torch.autocast("cpu", kind, enabled=enabled):
            drawn = torch.stack([layer(x) for _ in range(500)]).float()
        spread.append(drawn.std(0))
    torch.testing.assert_close(spread[1], spread[0], rtol=0.15, atol=1e-6)


def test_the_forward_pass_is_one_graph() -> None:
    """No Python branch on data: torch.compile would refuse a whole graph."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    SparseVD(kl_weight=1.0).setup(model)
    x = torch.randn(5, 2, 4, 4)
    for training in (True, False):
        model.train(training)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.manual_seed(7)
        expected = model(x)
        torch.manual_seed(7)
        torch.testing.assert_close(compiled(x), expected)


def test_the_unpruned_network_is_measured_too(tmp_path: Path) -> None:
    t = trainer(tmp_path, "method.initial_variance=1e-2", "method.kl_weight=1e-4", "schedule.epochs=2")
    line = t.fit()[-1]
    assert 0 < line["effective/sparsity"] < 1
    assert line["test/loss"] != line["unpruned/loss"]
    method: Any = t.e.method
    images, labels = next(t.e.data.test_batches(1000))
    x = images.flatten(1)
    with torch.no_grad():
        with method.unpruned():
            logits = t.model(images)
        again = t.model(images)
        for index, name in enumerate(("fc1", "fc2", "fc3")):
            layer = t.model.get_submodule(name)
            x = F.linear(x.relu() if index else x, layer.weight, layer.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(logits, x)
    assert not torch.equal(again, logits)
    assert line["unpruned/accuracy"] == pytest.approx(100 * float((x.argmax(1) == labels).double().mean()), abs=1e-4)


def test_a_model_without_a_layer_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no convolution or linear layer left to prune"):
        trainer(tmp_path, "method.keep_dense=[fc1,fc2,fc3]")


def test_the_loss_is_the_tasks_plus_the_divergence(tmp_path: Path) -> None:
    """One step of plain SGD against autograd on the written-out loss."""
    t = trainer(tmp_path, "method.kl_weight=0.01", "schedule.optimizer.momentum=0", "schedule.optimizer.nesterov=false")
    t.model.train()
    twin = copy.deepcopy(t.model)
    indices = torch.arange(30)
    torch.manual_seed(2)
    t.step(indices)
    torch.manual_seed(2)
    images, labels = t.e.data.batch(indices, 0)
    loss = F.cross_entropy(twin(images), labels)
    for layer in twin.modules():
        if isinstance(layer, Variational):
            ratio = layer.log_sigma2 - torch.log(layer.weight**2 + 1e-8)
            loss = loss + 0.01 * sum(_plain(ratio))
    grads = torch.autograd.grad(loss, list(twin.parameters()))
    for (name, moved), start, grad in zip(t.model.named_parameters(), twin.parameters(), grads, strict=True):
        torch.testing.assert_close(moved, start - t.ctx.lr * grad, rtol=1e-4, atol=1e-6, msg=name)


def _plain(log_alpha: Tensor) -> Tensor:
    a = log_alpha.clamp(-8, 8).flatten()
    return 0.63576 - 0.63576 * torch.sigmoid(1.8732 + 1.48695 * a) + 0.5 * torch.log1p(torch.exp(-a))
