"""The a-priori bound of rounding: never below what rounding does, and small enough to be of use."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import BOUNDS
from hydrabench.bounds.rounding import FACTORS, MORE, growth, measured, relaxed_on_path, rounding_bound

seeds = st.integers(0, 10_000)
every_kind = pytest.mark.parametrize("kind", FACTORS)


def in_single_precision(network, x):
    """The network, its float32 parameters in float64, and the images likewise."""
    narrow = network.float()
    return narrow, copy.deepcopy(narrow).double(), x.float(), x.float().double()


def margins(network, x, y):
    logits = network(x)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)


def test_growth_exceeds_the_worst_case_of_a_sum():
    """gamma_1000 in float32 is 1000 · 2^-24 / (1 - 1000 · 2^-24) = 5.96e-5; nothing is said from 2^21 terms on."""
    gamma = 1000 * 2**-24 / (1 - 1000 * 2**-24)
    assert gamma * (1 + gamma) < growth(1000, torch.float32) < 2.1 * gamma
    assert growth(0, torch.float64) == 0
    assert growth(2**21, torch.float32) == 0.25
    assert growth(2**21 + 1, torch.float32) == math.inf


def test_terms_and_magnitudes_of_a_layer_worked_by_hand():
    """Weights (2, -3, 0) and (0, 4, 0), biases (1, -1): two products per sum at most, two sums per value at most.

    From |v| = (1, 1, 1): 2 + 3 + 1 = 6 and 4 + 1 = 5. Batch norm of scale 2, bias 3 and mean 5 shifts by 3 - 10: at
    least 10 + 3 was added up, and 7 + 2 · 3 is no less.
    """
    layer, norm = nn.Linear(3, 2), nn.BatchNorm1d(2, eps=0.0)
    layer.weight.data, layer.bias.data = torch.tensor([[2.0, -3.0, 0.0], [0.0, 4.0, 0.0]]), torch.tensor([1.0, -1.0])
    norm.weight.data.fill_(2), norm.bias.data.fill_(3)
    norm.running_mean.fill_(5), norm.running_var.fill_(1)
    network = nn.Sequential(nn.Flatten(), layer, norm).eval().requires_grad_(False)
    flatten, dense, scale = measured(network, torch.zeros(1, 1, 1, 3))
    ones = torch.ones(1, 3)
    assert (flatten.terms, dense.terms) == (0, 2 + 2 + 2 + MORE)
    assert dense.operation.magnitude(ones).tolist() == [[6.0, 5.0]]
    assert scale.operation.magnitude(torch.zeros(1, 2)).tolist() == [[13.0, 13.0]]


def test_relaxed_operations_are_counted_along_the_longest_path(tiny_dag):
    pool = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2))
    nodes = measured(pool.eval(), torch.zeros(1, 1, 2, 2))
    assert relaxed_on_path(nodes) == [0, 1, 1, 3, 4, 4, 4]


@settings(max_examples=40)
@given(seed=seeds, epsilon=st.floats(0, 0.2), large=st.sampled_from([1.0, 1e3, 1e6]))
def test_interval_bounds_in_single_precision_are_off_by_no_more(tiny_problem, seed, epsilon, large):
    """Large constants that cancel in the last layer make rounding large."""
    network, x, y, _ = tiny_problem(seed)
    network[-1 if isinstance(network[-1], nn.Linear) else -2].weight.data *= large
    narrow, wide, x, same_x = in_single_precision(network, x)
    found, exact = BOUNDS["ibp"](narrow, x, y, epsilon), BOUNDS["ibp"](wide, same_x, y, epsilon)
    assert ((found - exact).abs() <= rounding_bound(narrow, x, y, epsilon, kind="ibp")).all()


@every_kind
@settings(max_examples=30)
@given(seed=seeds, epsilon=st.floats(0, 0.2), dag=st.booleans())
def test_no_bound_in_single_precision_claims_more_than_this_above_a_sampled_margin(
    tiny_problem, tiny_dag, kind, seed, epsilon, dag
):
    network, x, y, rng = (tiny_dag if dag else tiny_problem)(seed)
    narrow, wide, x, same_x = in_single_precision(network, x)
    claimed = BOUNDS[kind](narrow, x, y, epsilon) - rounding_bound(narrow, x, y, epsilon, kind=kind)
    for _ in range(4):
        step = (2 * torch.rand(x.shape, generator=rng, dtype=torch.float64) - 1).sign()
        assert (claimed <= margins(wide, (same_x + epsilon * step).clamp(0, 1), y)).all()


@every_kind
def test_rounding_that_turns_a_verdict_is_covered(cancelling, kind):
    """2^25 - 1 is 2^25 in float32: the margin of a pixel of 1 is -1/2, and comes out as 1/2."""
    network, x, y = cancelling(2.0**25), torch.ones(1, 1, 1, 1), torch.tensor([0])
    found = BOUNDS[kind](network, x, y, 0.0)
    assert found.item() == 0.5
    assert found - rounding_bound(network, x, y, 0.0, kind=kind) <= -0.5


def chain(*weights, biases=None):
    """Linear layers with these weights between ReLUs that are always on, behind a flatten."""
    layers = [nn.Flatten()]
    for weight, bias in zip(weights, biases or [0.0] * len(weights), strict=True):
        layer = nn.Linear(len(weight[0]), len(weight))
        layer.weight.data = torch.tensor(weight, dtype=torch.float32)
        layer.bias.data = torch.tensor(bias, dtype=torch.float32).expand(len(weight)).clone()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


@every_kind
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_underflow_that_turns_a_verdict_is_covered(kind, norm):
    """Margin 1/2 - p of a pixel p = 1, as 1/2 - 2^200 (2^-200 p): in float32 2^-200 is 0, and the bound 1/2."""
    tiny, large = [[2.0**-100]], [[2.0**100]]
    network = chain(tiny, tiny, large, large, [[-1.0], [0.0]], biases=[0, 0, 0, 0, [0.5, 0.0]])
    x, y = torch.ones(1, 1, 1, 1), torch.tensor([0])
    found = BOUNDS[kind](network, x, y, 0.0, norm=norm)
    assert not found - rounding_bound(network, x, y, 0.0, kind=kind) > -0.5


@every_kind
def test_underflow_in_an_l2_norm_is_covered(kind):
    """Logits (p, 1/4) of a pixel in [0, 1], through 2^-80 and 2^80: the square of 2^-80, in float32, is 0."""
    network, x, y = (
        chain([[2.0**-80]], [[2.0**80], [0.0]], biases=[0, [0, 0.25]]),
        torch.ones(1, 1, 1, 1),
        torch.tensor([0]),
    )
    found = BOUNDS[kind](network, x / 2, y, 0.5, norm="l2")
    assert not found - rounding_bound(network, x / 2, y, 0.5, kind=kind) > -0.25


def test_neurons_that_only_intervals_know_to_be_off_count():
    """CROWN says 1 where intervals say 1/1000, by -max(z, 0) <= -z, and passes a neuron that intervals turn off."""
    network = chain([[2.01]], [[-1.0]], [[1e8]], [[-1.0], [0.0]], biases=[-1.0, 0.001, -1e6, 0.0])
    x, y, wide = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), copy.deepcopy(network).double()
    assert BOUNDS["ibp"](wide, x.double(), y, 0.5).item() == 0.0
    found, exact = BOUNDS["crown"](network, x, y, 0.5), BOUNDS["crown"](wide, x.double(), y, 0.5)
    assert exact < -1e7
    assert 1 < (found - exact).abs() <= rounding_bound(network, x, y, 0.5, kind="crown")


def test_rounding_of_a_small_network_is_far_below_its_margins(tiny_problem):
    """If it were not, every image would be computed twice; here it is 2% of the smallest margin."""
    network, x, y, _ = tiny_problem(7)
    narrow, _, x, _ = in_single_precision(network, x)
    lower = BOUNDS["crown-ibp"](narrow, x, y, 0.01)
    assert (rounding_bound(narrow, x, y, 0.01, kind="crown-ibp") < 0.03 * lower.abs()).all()


def test_pruned_weights_round_nothing(tiny_problem):
    """Products with a weight of 0 are exact: of two networks of about the same results the sparse one is off less."""
    dense, sparse = nn.Linear(64, 2, bias=False), nn.Linear(64, 2, bias=False)
    dense.weight.data, sparse.weight.data = torch.full((2, 64), 1e-9), torch.zeros(2, 64)
    dense.weight.data[0, 0] = sparse.weight.data[0, 0] = 1.0
    x, y = torch.full((1, 1, 8, 8), 0.5), torch.tensor([0])
    few, many = (
        rounding_bound(nn.Sequential(nn.Flatten(), layer).eval(), x, y, 0.0, kind="ibp") for layer in (sparse, dense)
    )
    assert few < 0.75 * many


def test_nothing_is_said_where_numbers_are_too_large():
    layer = nn.Linear(1, 2)
    layer.weight.data.fill_(3e38), layer.bias.data.fill_(3e38)
    found = rounding_bound(
        nn.Sequential(nn.Flatten(), layer).eval(), torch.ones(1, 1, 1, 1), torch.tensor([0]), 0.1, kind="ibp"
    )
    assert not found.isfinite().any()
