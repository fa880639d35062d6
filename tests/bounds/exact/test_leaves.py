"""Parts of a ball in which nothing is left to cut are decided by linear programs, however small the margin."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from hydrabench.bounds.exact import Limits, decide, search
from hydrabench.bounds.exact.leaves import PENALTY, _smallest
from hydrabench.bounds.specification import pose

SEEDS = range(6)
TINY = 1e-7
PIXELS, WIDTH, EPSILON = (1, 5, 6), 7, 0.4


def instance(seed, margin):
    """A network, an image whose smallest margin in the ball is `margin`, and its label, which is always 0.

    The smallest margin is that of 128 linear programs, one for each pattern of active neurons.
    """
    rng = torch.Generator().manual_seed(seed)
    hidden, last = nn.Linear(30, WIDTH).double(), nn.Linear(WIDTH, 2).double()
    network = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), last).eval().requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype))
    x = 0.4 + 0.2 * torch.rand(1, *PIXELS, generator=rng, dtype=torch.float64)
    hidden.bias -= hidden(x.flatten(1)).squeeze(0)
    last.bias[0] += margin - smallest(hidden, last, x.flatten().numpy())
    return network, x


def smallest(hidden, last, x):
    w, b = hidden.weight.numpy(), hidden.bias.numpy()
    v, c = (part[0] - part[1] for part in (last.weight.numpy(), last.bias.numpy()))
    found = []
    for pattern in product((0.0, 1.0), repeat=WIDTH):
        active = np.array(pattern)
        signs = 1 - 2 * active  # active: w x + b >= 0
        bounds = np.column_stack([x - EPSILON, x + EPSILON])
        best = linprog((v * active) @ w, signs[:, None] * w, -signs * b, bounds=bounds, method="highs")
        if best.status == 0:
            found.append(best.fun + (v * active) @ b + c)
    return min(found)


def decided(network, x, subproblems=2000):
    def misclassified(_image, points):
        return [point if bad else None for point, bad in zip(points, network(points).argmax(1) != 0, strict=True)]

    problem = pose(network, x, torch.zeros(1, dtype=torch.int64), EPSILON, norm="linf")
    return decide(problem, Limits(subproblems), misclassified)[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_margin_of_almost_0_is_decided(seed):
    decision = decided(*instance(seed, TINY))
    assert decision.verdict == "verified"
    assert 0 < decision.lower <= 1.01 * TINY
    assert decided(*instance(seed, -TINY)).verdict == "broken"


def test_it_takes_fewer_subproblems_than_with_the_multipliers_of_adam(monkeypatch):
    counts = []
    for _ in range(2):
        counts.append(sum(decided(*instance(seed, TINY), 150).subproblems for seed in SEEDS[:2]))
        monkeypatch.setattr(search, "settle", lambda _walk, _bounds, _most: {})
    assert 2 * counts[0] < counts[1], counts


def test_the_smallest_value_and_its_multipliers_worked_by_hand():
    """x + y over the unit square where x - 1/2 and y - x are at least 0: 1 at (1/2, 1/2).

    x + y = 2 (x - 1/2) + (y - x) + 1, so the multipliers are 2 and 1.
    """
    coefficients = np.array([[1.0, 1.0], [1.0, 0.0], [-1.0, 1.0]])
    multipliers, point = _smallest(coefficients, np.array([0.0, -0.5, 0.0]), np.zeros(2), np.ones(2))
    assert multipliers == pytest.approx([2, 1])
    assert point == pytest.approx([0.5, 0.5])


def test_constraints_that_exclude_each_other_prove_anything():
    """x - 2 is nowhere at least 0 on the unit interval, so its multiplier is the penalty."""
    multipliers, _ = _smallest(np.array([[1.0], [1.0]]), np.array([-5.0, -2.0]), np.zeros(1), np.ones(1))
    assert multipliers == pytest.approx([PENALTY])
    assert min(x - 5 - multipliers[0] * (x - 2) for x in (0.0, 1.0)) > 0
