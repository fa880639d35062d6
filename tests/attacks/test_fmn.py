"""Fast minimum norm: the closed form on linear networks, and distances that its points bear out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.attacks import LOSSES, ExactBall, Moves, lengths, margin, search, unit_noise
from hydrabench.attacks.fmn import fmn

DUALS = {"linf": 1, "l2": 2, "l1": float("inf")}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def conv_problem():
    """A small random network and images, of which it gets all but the first right."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)).eval()
        x = torch.rand(30, 1, 4, 4)
    y = network(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    return network, x, y


@pytest.mark.parametrize(("norm", "dual"), DUALS.items())
def test_on_a_linear_network_the_distance_is_the_margin_over_the_dual_norm(norm, dual):
    """Images near 0.5 and small margins: the pixel range stops nobody."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double().eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(2, 16, generator=rng()).double())
        network[1].bias.zero_()
    x = torch.rand(10, 1, 4, 4, generator=rng(1)).double() * 0.1 + 0.45
    with torch.no_grad():
        network[1].bias.copy_(-(network[1].weight @ torch.full((16,), 0.5).double()))
    y = network(x).argmax(1)
    difference = (network[1].weight[0] - network[1].weight[1]).detach()
    exact = margin(network(x), y).detach() / difference.norm(p=dual)
    assert exact.max() < 0.4
    found, points = fmn(network, x, y, norm=norm, steps=200)
    assert (found >= exact * (1 - 1e-9)).all()
    assert (found / exact).max() < 1.05
    assert (network(points).argmax(1) != y).all()


@pytest.mark.parametrize("norm", DUALS)
def test_distances_are_those_of_misclassified_points_and_no_longer_than_a_search_finds(norm):
    network, x, y = conv_problem()
    found, points = fmn(network, x, y, norm=norm, steps=60)
    assert found[0] == 0
    broken = torch.isfinite(found)
    assert broken.sum() >= 28
    x, y, found, points = x[broken], y[broken], found[broken], points[broken]
    assert torch.equal(lengths(points.double() - x.double(), norm), found)
    assert points.min() >= 0
    assert points.max() <= 1
    assert (network(points).argmax(1) != y).all()
    shorter = found * 0.9  # a search in a ball a tenth smaller breaks few images
    ball = ExactBall.around(x, shorter, norm)
    size = (shorter / 10).median().item()
    start = ball.scaled(unit_noise(x.shape, norm=norm, generator=rng(2)))
    searched = search(network, ball, start, (y,), LOSSES["margin"], how=Moves(40, size), check=lambda *_: None)
    assert (searched.broke_at >= 0).sum() <= 4


def test_an_image_that_nothing_breaks_has_no_distance():
    class Constant(nn.Module):
        """Class 0 by 1, with a gradient."""

        def forward(self, x):
            zero = 0 * x.flatten(1).sum(1)
            return torch.stack([zero + 1, zero], dim=1)

    x = torch.rand(2, 1, 3, 3, generator=rng())
    found, points = fmn(Constant(), x, torch.tensor([0, 1]), norm="l2", steps=5)
    assert found.tolist() == [float("inf"), 0.0]
    assert torch.equal(points, x)
