from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import interval_bounds
from hydrabench.bounds.interval import RULES, Interval
from hydrabench.bounds.operations import Operation

seeds = st.integers(0, 10_000)


def linear(weight, bias):
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return layer


def test_interval_bounds_of_one_neuron_worked_by_hand():
    """y = 2a - b + 1 with a in [0, 1], b in [1, 3]: lowest 0 - 3 + 1, highest 2 - 1 + 1."""
    neuron = linear(weight=[[2.0, -1.0]], bias=[1.0])
    lower, upper = interval_bounds(neuron, torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    assert (lower.item(), upper.item()) == (-2.0, 2.0)


def test_interval_bounds_behind_a_relu_worked_by_hand():
    """The neuron above lies in [-2, 2], its ReLU in [0, 2], and 3 - 2 relu in [-1, 3]."""
    network = nn.Sequential(linear([[2.0, -1.0]], [1.0]), nn.ReLU(), linear([[-2.0]], [3.0]))
    lower, upper = interval_bounds(network, torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    assert (lower.item(), upper.item()) == (-1.0, 3.0)


def test_interval_bounds_of_a_convolution_worked_by_hand():
    """Kernel [1, -2], stride 2, padding 1 on pixels in [0, 1], [0, 2], [1, 1].

    Windows (0, p0) and (p1, p2): -2 p0 in [-2, 0]; p1 - 2 p2 in [0 - 2, 2 - 2]. Every row of padding
    around the single row of pixels gives 0.
    """
    layer = nn.Conv2d(1, 1, (1, 2), stride=(1, 2), padding=(1, 1), bias=False)
    layer.weight.data = torch.tensor([[[[1.0, -2.0]]]])
    lower, upper = interval_bounds(layer, torch.tensor([[[[0.0, 0.0, 1.0]]]]), torch.tensor([[[[1.0, 2.0, 1.0]]]]))
    assert lower.tolist() == [[[[0.0, 0.0], [-2.0, -2.0], [0.0, 0.0]]]]
    assert upper.tolist() == [[[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]]


def test_batch_norm_with_a_negative_weight_swaps_the_corners():
    """(x - 1) / sqrt(4) · (-3) + 5 with x in [1, 3]: from 5 - 3 to 5."""
    norm = nn.BatchNorm1d(1, eps=0.0).eval()
    norm.running_mean.fill_(1.0), norm.running_var.fill_(4.0)
    norm.weight.data.fill_(-3.0), norm.bias.data.fill_(5.0)
    lower, upper = interval_bounds(norm, torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    assert (lower.item(), upper.item()) == (2.0, 5.0)


def test_normalisation_is_part_of_the_network():
    """(x - mean) / std per channel: [0, 1] becomes [-1, 1] and [-1, 3]."""
    from hydrabench.models.normalize import Normalize

    network = nn.Sequential(Normalize([0.5, 0.25], [0.5, 0.25]), nn.Flatten())
    lower, upper = interval_bounds(network, torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1))
    assert (lower.tolist(), upper.tolist()) == ([[-1.0, -1.0]], [[1.0, 3.0]])


@settings(deadline=None, max_examples=48)
@given(seed=seeds, reach=st.floats(0, 1))
def test_sampled_outputs_lie_inside_the_bounds(tiny_problem, seed, reach):
    network, x, _, rng = tiny_problem(seed)
    spread = reach * torch.rand(x.shape, generator=rng, dtype=x.dtype)
    lower, upper = interval_bounds(network, x - spread, x + spread)
    for _ in range(8):
        share = torch.rand(x.shape, generator=rng, dtype=x.dtype)
        for point in (x - spread + 2 * spread * share, x - spread + 2 * spread * share.round()):
            output = network(point)
            assert (lower - 1e-9 <= output).all()
            assert (output <= upper + 1e-9).all()


@settings(deadline=None, max_examples=24)
@given(seed=seeds)
def test_an_interval_of_one_point_is_the_output(tiny_problem, seed):
    network, x, _, _ = tiny_problem(seed)
    lower, upper = interval_bounds(network, x, x)
    torch.testing.assert_close(lower, network(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(upper, network(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_an_affine_network_is_bounded_exactly(seed):
    """Without ReLU the worst corner is attained: an image at the corner that each output's gradient points to."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.Flatten()).double().eval()
    network[1].running_var.uniform_(0.5, 2)
    lower, upper = torch.rand(1, 2, 4, 4, dtype=torch.float64), torch.rand(1, 2, 4, 4, dtype=torch.float64) + 1
    low, high = interval_bounds(network, lower, upper)
    slopes = torch.func.jacrev(lambda image: network(image)[0])(lower)
    for output, slope in enumerate(slopes):
        best = network(torch.where(slope > 0, upper, lower))[0, output]
        worst = network(torch.where(slope > 0, lower, upper))[0, output]
        torch.testing.assert_close((low[0, output], high[0, output]), (worst, best), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(seed=seeds, reach=st.floats(0, 0.5))
def test_branches_and_pooling_keep_sampled_outputs_inside_and_one_point_exact(tiny_dag, seed, reach):
    network, x, _, rng = tiny_dag(seed)
    for ends in interval_bounds(network, x, x):
        torch.testing.assert_close(ends, network(x), rtol=1e-9, atol=1e-9)
    spread = reach * torch.rand(x.shape, generator=rng, dtype=x.dtype)
    lower, upper = interval_bounds(network, x - spread, x + spread)
    for _ in range(4):
        share = torch.rand(x.shape, generator=rng, dtype=x.dtype)
        for point in (x - spread + 2 * spread * share, x - spread + 2 * spread * share.round()):
            output = network(point)
            assert (lower - 1e-9 <= output).all()
            assert (output <= upper + 1e-9).all()


def test_interval_bounds_of_poolings_worked_by_hand():
    """Pixels in [0, 1], [2, 5], [-3, 3], windows of two, one pixel of padding on both sides.

    Padding never wins a maximum: p0, max(p0, p1), max(p1, p2), p2. It counts as 0 in a mean of two, p0 / 2,
    unless it is left out: p0. Two adaptive means of three pixels are (p0 + p1) / 2 and (p1 + p2) / 2.
    """
    box = torch.tensor([[[[0.0, 2.0, -3.0]]]]), torch.tensor([[[[1.0, 5.0, 3.0]]]])
    pools = {
        nn.MaxPool2d((1, 2), 1, (0, 1)): ([0, 2, 2, -3], [1, 5, 5, 3]),
        nn.AvgPool2d((1, 2), 1, (0, 1)): ([0, 1, -0.5, -1.5], [0.5, 3, 4, 1.5]),
        nn.AvgPool2d((1, 2), 1, (0, 1), count_include_pad=False): ([0, 1, -0.5, -3], [1, 3, 4, 3]),
        nn.AdaptiveAvgPool2d((1, 2)): ([1, -0.5], [3, 4]),
        nn.AdaptiveAvgPool2d((1, 1)): ([-1 / 3], [3]),
    }
    for pool, expected in pools.items():
        found = interval_bounds(pool, *box)
        for ends, numbers in zip(found, expected, strict=True):
            assert ends.flatten().tolist() == pytest.approx(numbers), pool


def test_a_sum_forgets_that_both_values_come_from_the_same_pixel():
    """x + relu(x) on [-1, 2]: [-1, 2] + [0, 2]."""

    class Sum(nn.Module):
        def forward(self, x):
            return x + x.relu()

    lower, upper = interval_bounds(Sum(), torch.tensor([[-1.0]]), torch.tensor([[2.0]]))
    assert (lower.item(), upper.item()) == (-1.0, 4.0)


def test_an_empty_box_is_a_mistake():
    with pytest.raises(ValueError, match="lower exceeds upper"):
        interval_bounds(nn.Linear(1, 1), torch.ones(1, 1), torch.zeros(1, 1))


def test_gradients_are_the_same_whether_or_not_corners_are_taken():
    lower, upper = torch.tensor([1.0]), torch.tensor([3.0])
    taken = Interval.taking(lower.clone(), upper.clone())
    assert (taken.center.item(), taken.width.item()) == (2.0, 2.0)
    tracked = lower.clone().requires_grad_()
    assert Interval.taking(tracked, upper).width.grad_fn is not None
    assert Interval.taking(lower, tracked).width.grad_fn is not None
    assert (tracked.item(), lower.item(), upper.item()) == (1.0, 1.0, 3.0)


def test_every_operation_has_a_rule_in_both_directions():
    from hydrabench.bounds import crown

    assert set(RULES) == set(crown.RULES) == set(Operation.__subclasses__())
