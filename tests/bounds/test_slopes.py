from __future__ import annotations

import pytest
import torch

from hydrabench.bounds.box import Interval
from hydrabench.bounds.patches import Rows
from hydrabench.bounds.program.relu import Relu
from hydrabench.bounds.slopes import Slopes


def start(*, channels_last=False, seed=0):
    """Functions of max(z, 0) for z of two images, some neurons on, some off, some unstable."""
    rng = torch.Generator().manual_seed(seed)
    lower = torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64)
    upper = lower + 2 * torch.rand(lower.shape, generator=rng, dtype=torch.float64)
    coefficients = torch.randn(3, 3, 4, 5, generator=rng, dtype=torch.float64)
    if channels_last:
        coefficients = coefficients.contiguous(memory_format=torch.channels_last)
    rows = Rows(coefficients, torch.tensor([0, 0, 1]))
    return rows, Slopes.of(Relu(), rows, Interval.between(lower, upper)), lower, upper


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_with_crowns_slopes_is_crowns(channels_last):
    """Positive coefficients times 0 or 1, negative ones times u / (u - l), and u l / (u - l) for the constant."""
    rows, slopes, lower, upper = start(channels_last=channels_last)
    lower, upper = lower[rows.image], upper[rows.image]
    found, gain = slopes.passed(rows)
    unstable, on = (lower < 0) & (upper > 0), lower >= 0
    chord = upper / (upper - lower)
    slope = torch.where(rows.coefficients > 0, (upper > -lower).double(), chord)
    expected = rows.coefficients * torch.where(unstable, slope, on.double())
    torch.testing.assert_close(found.coefficients, expected)
    constants = torch.where(unstable, rows.coefficients.clamp(max=0) * chord * -lower, 0)
    torch.testing.assert_close(gain, constants.flatten(1).sum(1))


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_gradient_of_a_step_is_that_of_differences(channels_last):
    rows, slopes, *_ = start(channels_last=channels_last)
    slopes.chosen = torch.rand_like(slopes.chosen, dtype=torch.float64)

    def step(coefficients, below):
        slopes.chosen = below
        found, gain = slopes.passed(Rows(coefficients, rows.image))
        return found.coefficients, gain

    inputs = rows.coefficients.detach().requires_grad_(), slopes.chosen.detach().requires_grad_()
    assert torch.autograd.gradcheck(step, inputs)


def test_adam_goes_up_and_stays_between_0_and_1():
    """Its first step is the learning rate in the direction of the gradient, whatever its size."""
    _, slopes, *_ = start()
    before = slopes.chosen.detach().clone()
    gradient = torch.where(torch.rand_like(before) < 0.5, 1e-3, -50.0)
    slopes.climb(gradient.clone(), 0.1, 1)
    expected = torch.where(slopes.spread.unsqueeze(1) > 0, before + 0.1 * gradient.sign(), before).clamp(0, 1)
    torch.testing.assert_close(slopes.chosen.detach(), expected, rtol=0, atol=1e-5)
    for step in range(2, 40):
        slopes.climb(torch.ones_like(before), 0.1, step)
    assert slopes.chosen.max() == 1
    assert slopes.chosen.requires_grad


def test_adam_is_torchs():
    _, slopes, *_ = start()
    slopes.chosen = torch.full_like(slopes.chosen, 0.5)
    theirs = torch.full_like(slopes.chosen, 0.5).requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.01, maximize=True)
    for step in range(1, 6):
        gradient = torch.sin(torch.arange(theirs.numel()).view_as(theirs) * step) * slopes.spread.unsqueeze(1)
        theirs.grad = gradient.double()
        adam.step()
        slopes.climb(gradient.double(), 0.01, step)
    torch.testing.assert_close(slopes.chosen.detach(), theirs.detach())


def test_some_functions_keep_their_slopes_and_averages():
    _, slopes, *_ = start()
    slopes.climb(torch.arange(slopes.chosen.numel()).view_as(slopes.chosen).double(), 0.1, 1)
    kept = torch.tensor([True, False, True])
    some = slopes.some(kept)
    for name in ("chosen", "index", "listed", "spread", "lower", "upper", "above", "high", "on", "mean", "square"):
        assert torch.equal(getattr(some, name), getattr(slopes, name)[kept])
