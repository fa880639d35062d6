"""alpha-CROWN: one neuron by hand; sound on every operation, and never below CROWN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.bounds import alpha_crown_margins
from hydrabench.bounds.alpha import Search
from tests.helpers.alpha_problems import MODES, NORMS, crown_margins, planar, problem
from tests.helpers.attack import descended, grid_minimum


def one_neuron(weight):
    """The margin of class 0 is weight · relu(x1 - x2) - (x1 - x2) / 2."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, -1.0], [0.5, 0.0], [0.0, 0.5]]))
        network[3].weight.copy_(torch.tensor([[weight, 0.0, 0.0], [0.0, 1.0, -1.0]]))
    return network


def test_the_slope_of_one_neuron_worked_by_hand():
    """z = x1 - x2, x = (0.6, 0.5), epsilon 0.2: z lies in [-0.3, 0.5].

    The margin relu(z) - z / 2 is at least (a - 1/2) z for a slope a in [0, 1]. CROWN takes a = 1, because 0.5 > 0.3:
    z / 2 >= -0.15. The best slope is a = 1/2: 0, which is the true minimum.
    """
    x, y = torch.tensor([[[[0.6, 0.5]]]]), torch.tensor([0])
    assert crown_margins(one_neuron(1.0), x, y, 0.2).item() == pytest.approx(-0.15, abs=1e-6)
    for slopes in ("output", "all"):
        found = alpha_crown_margins(one_neuron(1.0), x, y, 0.2, search=Search(slopes)).item()
        assert -1e-3 < found <= 1e-6


@pytest.mark.parametrize("weight", [0.3, 0.6, 1.0, 2.0, -1.0])
@NORMS
def test_the_slope_of_one_neuron_is_the_best_one_of_a_grid(norm, radius, weight):
    """With slope a the margin is at least c · z + d, c = weight a - 1/2 below: its minimum over z is at an end.

    Over the L2 ball |x1 - x2 - 0.1| <= sqrt(2) epsilon; a negative weight takes the chord, and no slope matters.
    """
    x, y, epsilon = torch.tensor([[[[0.6, 0.5]]]]), torch.tensor([0]), 0.1 * radius
    reach = 2 * epsilon if norm == "linf" else 2**0.5 * epsilon
    low, high = 0.1 - reach, 0.1 + reach
    slope = torch.linspace(0, 1, 1001) if weight > 0 else torch.tensor([high / (high - low)])
    ends = [(weight * slope - 0.5) * end for end in (low, high)]
    constant = 0.0 if weight > 0 else -weight * low * high / (high - low)
    expected = (torch.minimum(*ends) + constant).max().item()
    found = alpha_crown_margins(one_neuron(weight), x, y, epsilon, norm=norm, search=Search(iterations=200)).item()
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
@MODES
@NORMS
def test_no_point_of_a_grid_lies_below_the_bound(norm, radius, slopes, seed):
    network, x, y = planar(seed)
    for epsilon in (0.05 * radius, 0.1 * radius):
        found = alpha_crown_margins(network, x, y, epsilon, norm=norm, search=Search(slopes, iterations=30))
        assert (found <= grid_minimum(network, x, y, epsilon, norm) + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pooling", [False, True])
@MODES
@NORMS
def test_alpha_crown_lies_between_crown_and_what_an_attack_reaches(norm, radius, slopes, pooling, dtype):
    network, x, y, rng = problem(1, pooling=pooling, dtype=dtype)
    epsilon = 0.1 * radius
    crown = crown_margins(network, x, y, epsilon, norm=norm)
    found = alpha_crown_margins(network, x, y, epsilon, norm=norm, search=Search(slopes, iterations=20))
    assert found.dtype == dtype
    assert not found.requires_grad
    assert (found >= crown).all()
    assert (found - crown).sum() > 0.003
    assert (found <= descended(network, x, y, epsilon, norm, rng) + 1e-5).all()


@pytest.mark.parametrize(
    ("pooling", "norm", "radius"),
    [("avg", "linf", 1.0), ("max", "linf", 1.0), ("max", "l2", 3.0), ("global", "l2", 3.0)],
)
@MODES
def test_residual_and_pooling_networks_are_bounded_soundly(residual_network, norm, radius, slopes, pooling):
    """For labels that are wrong, so that no image is done before the search begins."""
    network, x, y, rng = residual_network(pooling)
    wrong, epsilon = (y + 1) % 4, 0.02 * radius
    crown = crown_margins(network, x, wrong, epsilon, norm=norm)
    found = alpha_crown_margins(network, x, wrong, epsilon, norm=norm, search=Search(slopes, iterations=5))
    assert (found >= crown).all()
    assert (found > crown + 1e-6).any()
    assert (found <= descended(network, x, wrong, epsilon, norm, rng) + 1e-5).all()


@pytest.mark.parametrize("seed", range(24))
@NORMS
def test_every_operation_is_passed_soundly_and_no_bound_is_below_crowns(tiny_problem, tiny_dag, norm, radius, seed):
    for make in (tiny_problem, tiny_dag):
        network, x, y, rng = make(seed)
        epsilon = 0.05 * radius
        crown = crown_margins(network, x, y, epsilon, norm=norm)
        reached = descended(network, x, y, epsilon, norm, rng, restarts=2, steps=5)
        for slopes in ("output", "all"):
            found = alpha_crown_margins(network, x, y, epsilon, norm=norm, search=Search(slopes, iterations=4))
            assert (found >= crown).all()
            assert (found <= reached + 1e-9).all()


def test_slopes_of_neurons_help_those_of_the_output():
    network, x, y, _ = problem(1)
    output, every = (alpha_crown_margins(network, x, y, 0.1, search=Search(slopes, 20)) for slopes in ("output", "all"))
    assert (every >= output - 1e-5).all()
    assert (every - output).mean() > 0.002
