from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hydrabench.bounds.box import Interval
from hydrabench.bounds.program.pooling import AdaptiveAveragePool, AveragePool, MaxPool

seeds = st.integers(0, 10_000)
# Overlapping and dilated windows, windows with gaps between them, padding, images that they do not cover to the end.
MAX_POOLS = [
    MaxPool(*pairs)
    for pairs in (
        ((2, 2), (2, 2), (0, 0), (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((2, 3), (1, 2), (1, 0), (2, 1)),
        ((1, 2), (3, 1), (0, 1), (1, 2)),
        ((1, 1), (2, 1), (0, 0), (1, 1)),
    )
]


def window(lower, upper):
    """One window over a row of pixels."""
    corners = [torch.tensor(ends, dtype=torch.float64).view(1, 1, 1, -1) for ends in (lower, upper)]
    operation = MaxPool((1, len(lower)), (1, len(lower)), (0, 0), (1, 1))
    lines = operation.lines(*corners)
    return [value.item() for value in (lines.below, lines.above, lines.slope, lines.high)]


def test_the_lines_around_a_contested_maximum_worked_by_hand():
    """[0, 4], [1, 3], [-2, 2]: the first reaches highest, the others 3: chord from (0, 3) to (4, 4), z / 4 + 3.

    The second has the largest lower bound, 1, so it is the line below.
    """
    assert window([0.0, 1.0, -2.0], [4.0, 3.0, 2.0]) == [1, 0, 0.25, 3.0]


def test_a_maximum_that_one_value_surely_wins_is_that_value():
    """[2, 4] against [0, 2]; [1, 1] against [0, 1]; behind a ReLU [0, 3] against values that are 0; a tie of points."""
    assert window([0.0, 2.0], [2.0, 4.0]) == [1, 1, 1, 0]
    assert window([0.0, 1.0], [1.0, 1.0])[2:] == [0, 1]
    assert window([0.0, 0.0, 0.0], [0.0, 3.0, 0.0]) == [1, 1, 1, 0]
    assert window([5.0, 5.0], [5.0, 5.0]) == [0, 0, 1, 0]


def random_box(shape, rng):
    ends = torch.randn(2, *shape, generator=rng, dtype=torch.float64)
    ends = torch.where(torch.rand(shape, generator=rng) < 0.3, ends.relu(), ends)  # ties, points
    return Interval.between(ends.amin(0), ends.amax(0))


def corners_and_points(box, rng):
    for _ in range(12):
        share = torch.rand(box.center.shape, generator=rng, dtype=box.center.dtype)
        yield box.lower() + share * box.width
        yield box.lower() + share.round() * box.width


@pytest.mark.parametrize("operation", MAX_POOLS)
@settings(max_examples=20)
@given(seed=seeds)
def test_rows_through_max_pooling_lie_below_it_everywhere_in_the_box(operation, seed):
    rng = torch.Generator().manual_seed(seed)
    box = random_box((2, 3, 5, 7), rng)
    pooled = operation.apply(box.center)
    rows = torch.randn(2, 4, *pooled.shape[1:], generator=rng, dtype=torch.float64)
    (below,), gain = operation.lines(box.lower(), box.upper()).back(rows, [box.center.shape])
    assert below.shape == (2, 4, 3, 5, 7)
    for point in corners_and_points(box, rng):
        exact = (rows * operation.apply(point).unsqueeze(1)).flatten(2).sum(2)
        assert ((below * point.unsqueeze(1)).flatten(2).sum(2) + gain <= exact + 1e-9).all()
    (below,), gain = operation.lines(box.center, box.center).back(rows, [box.center.shape])
    exact = (rows * operation.apply(box.center).unsqueeze(1)).flatten(2).sum(2)
    torch.testing.assert_close((below * box.center.unsqueeze(1)).flatten(2).sum(2) + gain, exact)


@settings(max_examples=60)
@given(seed=seeds, size=st.integers(1, 4))
def test_the_line_above_encloses_every_corner_and_never_exceeds_the_largest_upper_bound(seed, size):
    """At the corners of the box, all of them: there the difference of a line and a maximum is largest."""
    rng = torch.Generator().manual_seed(seed)
    box = random_box((1, 1, 1, size), rng)
    lower, upper = box.lower().flatten(), box.upper().flatten()
    below, above, slope, offset = window(lower.tolist(), upper.tolist())
    for ends in itertools.product(*zip(lower.tolist(), upper.tolist(), strict=True)):
        assert ends[below] <= max(ends) + 1e-12
        assert max(ends) - 1e-9 <= slope * ends[above] + offset <= upper.max().item() + 1e-9


@pytest.mark.parametrize(
    "operation",
    [
        AveragePool((2, 2), (2, 2), (0, 0), True),
        AveragePool((3, 2), (2, 1), (1, 1), True),
        AveragePool((3, 2), (1, 3), (1, 0), False),
        AdaptiveAveragePool((1, 1)),
        AdaptiveAveragePool((2, 3)),
        AdaptiveAveragePool((None, 2)),
        AdaptiveAveragePool((7, 9)),  # more than there are pixels
    ],
)
def test_averages_are_passed_exactly(operation):
    """Their rows backward are the gradients that autograd finds."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 7, generator=rng, dtype=torch.float64, requires_grad=True)
    pooled = operation.apply(x)
    rows = torch.randn(2, 4, *pooled.shape[1:], generator=rng, dtype=torch.float64)
    found = operation.back(rows.flatten(0, 1), [x.shape])[0].unflatten(0, (2, 4))
    assert operation.gain(rows.flatten(0, 1), [x.shape]) is None
    for number in range(4):
        (exact,) = torch.autograd.grad(pooled, x, rows[:, number], retain_graph=True)
        torch.testing.assert_close(found[:, number], exact)


def test_gradients_flow_through_pooling_in_both_directions():
    """Against finite differences, through a pass forward and a pass backward."""
    from hydrabench.bounds import class_margins

    torch.manual_seed(3)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.AvgPool2d(2, 1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(12, 3)).double()
    x, y = torch.rand(2, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 2])
    weight = network[0].weight

    def loss():
        return class_margins(network, x, y, 0.02, beta=0.5).square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight.add_(direction, alpha=1e-6)
        high = loss().item()
        weight.add_(direction, alpha=-2e-6)
    assert (gradient * direction).sum().item() == pytest.approx((high - loss().item()) / 2e-6, rel=1e-4)


def test_max_pooling_of_the_framework_ignores_padding_as_the_windows_do():
    x = torch.full((1, 1, 2, 2), -5.0)
    assert F.max_pool2d(x, 3, 2, 1).item() == -5
    lines = MAX_POOLS[1].lines(x, x)
    assert (lines.slope.item(), lines.high.item()) == (1, 0)
