"""Lamb: one step by hand, NVIDIA's bound, and timm's where the two agree."""

from __future__ import annotations

import math

import pytest
import torch
from timm.optim import Lamb as Theirs
from torch import nn

from runner.lamb import Lamb


def test_two_steps_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]).double())
    untouched = nn.Parameter(torch.ones(1).double())
    optimizer = Lamb(params=[weight, untouched], lr=0.1, weight_decay=0.5, beta1=0.8, beta2=0.9, eps=1e-3)
    p, m, v = [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]
    for grad in ([1.0, -2.0], [0.5, 0.0]):
        weight.grad = torch.tensor(grad).double()
        optimizer.step()
        m = [0.8 * a + 0.2 * g for a, g in zip(m, grad, strict=True)]
        v = [0.9 * a + 0.1 * g * g for a, g in zip(v, grad, strict=True)]
        r = [a / (math.sqrt(b) + 1e-3) + 0.5 * w for a, b, w in zip(m, v, p, strict=True)]
        ratio = min(math.hypot(*p), 10) / (math.hypot(*r) + 1e-3)
        p = [w - 0.1 * ratio * d for w, d in zip(p, r, strict=True)]
        assert weight.tolist() == pytest.approx(p, rel=1e-9)
    assert untouched.item() == 1.0 and untouched not in optimizer.state


@pytest.mark.parametrize(("scale", "length"), [(1.0, 5.0), (4.0, 10.0), (0.0, 0.0)])
def test_the_length_of_a_step(scale: float, length: float) -> None:
    """lr times the weight's norm, or times the bound; a weight of zeros moves by Adam's own step."""
    weight = nn.Parameter(scale * torch.tensor([3.0, 4.0]).double())
    weight.grad = torch.tensor([1.0, 1.0]).double()
    before = weight.detach().clone()
    Lamb(params=[weight], lr=0.01, eps=1e-12).step()
    adam = 0.1 / math.sqrt(0.001) * math.sqrt(2)  # without correction for the moments' start
    assert (weight - before).norm().item() == pytest.approx(0.01 * (length or adam), rel=1e-6)


def test_without_a_bound_it_is_timms() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    one = Lamb(params=ours.parameters(), lr=0.02, norm_bound=math.inf)
    other = Theirs(
        theirs.parameters(), lr=0.02, weight_decay=0.0, bias_correction=False, always_adapt=True, max_grad_norm=None
    )
    for _ in range(20):
        x = torch.randn(8, 6).double()
        for model, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_saved_state_goes_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(4, 4), nn.Linear(4, 4)]
    models[1].load_state_dict(models[0].state_dict())
    grads = torch.randn(6, 2, 4, 4)
    optimizers = [Lamb(params=model.parameters(), lr=0.1) for model in models]

    def step(which: int, at: int) -> None:
        models[which].weight.grad, models[which].bias.grad = grads[at, 0].clone(), grads[at, 1, 0].clone()
        optimizers[which].step()

    for at in range(6):
        step(0, at)
    for at in range(3):
        step(1, at)
    state = optimizers[1].state_dict()
    optimizers[1] = Lamb(params=models[1].parameters(), lr=9.0)
    optimizers[1].load_state_dict(state)
    for at in range(3, 6):
        step(1, at)
    assert models[0].weight.equal(models[1].weight) and models[0].bias.equal(models[1].bias)
