"""How wide a random network must be to hold a target as a subnetwork when every weight may be drawn R times.

Chijiwa et al. 2021, appendix A: a target of l layers with matrices F_i (d_i, d_i-1), of Frobenius norms up to 1 and
with ReLU in between, and a random network of 2l layers whose weights are uniform in [-1, 1], each re-sampled up to
R - 1 times. The construction (lemma A.6): hidden layer 2i - 1 has, for every input j and each sign s of it, a block of
n neurons that see nothing but that input, and of these every weight F_kj keeps one: with weights u into it and v out of
it, u of the sign s, it computes v relu(u x_j) = v u x_j where x_j has that sign, and u v is to be F_kj. So the hidden
layer is 2 d_i-1 n wide. `neurons` is this n throughout, the same in all layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Sizes = Sequence[int]

_ELEMENTS = 1 << 18  # numbers drawn at a time; another number draws others


def bound(sizes: Sizes, error: float, failure: float, draws: int) -> int:
    """The n of theorem A.1: with it a subnetwork has an error up to `error` but with a probability up to `failure`.

    The theorem gives every layer its own, ceil(64 l^2 d_i-1^2 d_i / (error^2 R^2) log(2 l d_i-1 d_i / failure)); this
    is the greatest. `sizes`: d_0 ... d_l; `draws`: R.
    """
    layers = len(sizes) - 1
    return max(
        math.ceil((8 * layers * a / (error * draws)) ** 2 * b * math.log(2 * layers * a * b / failure))
        for a, b in pairwise(sizes)
    )


def tolerances(sizes: Sizes, error: float) -> list[float]:
    """Per layer how near the proof wants u to its sign, and v to the target's weight: error / (4 l d_i-1 sqrt(d_i)).

    Then |u v - w| is below twice that, and the norm of a layer's error below error / (2 l).
    """
    return [error / (4 * (len(sizes) - 1) * a * math.sqrt(b)) for a, b in pairwise(sizes)]


def chance(sizes: Sizes, error: float, draws: int, neurons: int) -> float:
    """The probability that n neurons hold the proof's choice for every weight, of weights hardest to hit: +1 or -1.

    Of R draws one at least lies within the tolerance t of such a weight with the probability a = 1 - (1 - t/2)^R. That
    every one of b weights finds a neuron with a good u and a good v of its own, among n neurons whose u it shares with
    the other weights, has the probability sum over k of (-1)^k C(b, k) (1 - a + a (1 - a)^k)^n; all blocks are
    independent. The proof says more: that the R^2 pairs of a u and a v fail independently of one another, (1 - t^2/4)
    to the power n R^2; which holds for R = 1 only.
    """
    whole = 1.0
    for (inputs, outputs), tolerance in zip(pairwise(sizes), tolerances(sizes, error), strict=True):
        a = -math.expm1(draws * math.log1p(-tolerance / 2))
        block = math.fsum(
            (-1) ** k * math.comb(outputs, k) * math.exp(neurons * math.log1p(a * math.expm1(k * math.log1p(-a))))
            for k in range(outputs + 1)
        )
        whole *= max(block, 0.0) ** (2 * inputs)
    return whole


def sufficient(sizes: Sizes, error: float, failure: float, draws: int) -> int:
    """The least n with which the proof's choice exists, of weights hardest to hit, but with probability `failure`."""
    return least(lambda neurons: chance(sizes, error, draws, neurons) >= 1 - failure)


def least(holds: Callable[[int], bool]) -> int:
    """The least whole number from 1 for which `holds`, which stays true from there on."""
    high = 1
    while not holds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def targets(sizes: Sizes, repetitions: int, rng: np.random.Generator, weight: float | None = None) -> list[Floats]:
    """Random targets, (repetitions, d_i, d_i-1) a layer: uniform in [-1, 1], scaled to norm 1 where it is above.

    With `weight` all weights are that number.
    """
    drawn = []
    for inputs, outputs in pairwise(sizes):
        shape = (repetitions, outputs, inputs)
        layer = rng.uniform(-1, 1, shape) if weight is None else np.full(shape, float(weight))
        drawn.append(layer / np.maximum(np.sqrt((layer**2).sum((1, 2), keepdims=True)), 1))
    return drawn


def first_widths(
    target: Sequence[Floats], error: float, draws: int, rng: np.random.Generator, most: int
) -> NDArray[np.int64]:
    """Per repetition the least n with which the error of the best choice is `error` at most; most + 1: none up to most.

    The neurons of a repetition are drawn one after another, so that a wider network has the narrower one within it. Of
    a neuron u is the draw nearest to its sign, v that with the least |u v - w|; every weight takes its best neuron.
    """
    repetitions = len(target[0])
    found = np.full(repetitions, most + 1, dtype=np.int64)
    left = np.arange(repetitions)
    best = [np.full((repetitions, 2, layer.shape[2], 1, layer.shape[1]), np.inf) for layer in target]
    elements = draws * max(2 * layer.shape[1] * layer.shape[2] for layer in target)
    neurons = 0
    while left.size and neurons < most:
        count = max(1, min(most - neurons, _ELEMENTS // (elements * left.size)))
        for i, layer in enumerate(target):
            errors = _errors(layer[left], count, draws, rng)
            errors = np.minimum.accumulate(np.concatenate([best[i], errors], axis=3), axis=3)
            best[i] = errors
        good = certified([layer[left] for layer in target], [errors[:, :, :, 1:] for errors in best]) <= error
        done = good.any(1)
        found[left[done]] = neurons + 1 + good[done].argmax(1)
        left, best = left[~done], [errors[~done, :, :, -1:] for errors in best]
        neurons += count
    return found


def _errors(layer: Floats, count: int, draws: int, rng: np.random.Generator) -> Floats:
    """|u v - w| of new neurons: (repetitions, signs, inputs, neurons, outputs); inf where u has the other sign."""
    repetitions, outputs, inputs = layer.shape
    u = rng.uniform(-1, 1, (repetitions, 2, inputs, count, draws))
    u[:, 1] *= -1  # of the second block -u counts
    u = u.max(-1)
    v = rng.uniform(-1, 1, (repetitions, 2, inputs, count, outputs, draws))
    w = layer.transpose(0, 2, 1)[:, None, :, None, :, None]
    v *= u[..., None, None]  # in the second block u v is -u times -v, which is as uniform as v
    v -= w
    found = np.abs(v, out=v).min(-1)
    found[u <= 0] = np.inf
    return found


def certified(target: Sequence[Floats], errors: Sequence[Floats]) -> Floats:
    """What the L2 error of a pruned network cannot exceed where all |x_j| <= 1; exact for one layer of one input.

    `errors`: (repetitions, signs, inputs, ..., outputs) a layer, |u v - w| of the neurons that are kept.
    Returns (repetitions, ...). With e_0 = 0 and b_0 = 1: e_i = |F_i| e_i-1 + s_i (b_i-1 + e_i-1), |F_i| the Frobenius
    norm, b_i the greatest output of the target's layer i, s_i the error of the layer itself: the norm over outputs of
    the sum over inputs of the worse sign's error. After the first layer there are no negative inputs.
    """
    lead = errors[0].shape[:1] + (1,) * (errors[0].ndim - 4)
    reached: Floats = np.ones(lead)
    e: Floats = np.zeros(lead)
    for i, (layer, error) in enumerate(zip(target, errors, strict=True)):
        worse = error.max(1) if i == 0 else error[:, 0]
        own = np.sqrt((worse.sum(1) ** 2).sum(-1))
        norm = np.sqrt((layer**2).sum((1, 2))).reshape(lead)
        with np.errstate(invalid="ignore"):  # 0 * inf: no neuron yet
            e = np.where(np.isinf(own), np.inf, norm * e + own * (reached + e))
        reached = reached * np.abs(layer).sum(2).max(1).reshape(lead)
    return e
