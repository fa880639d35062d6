from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import interval_bounds
from hydrabench.bounds.box import Interval
from hydrabench.bounds.interval import propagate
from hydrabench.bounds.program.linear import Add, Dense
from hydrabench.bounds.program.program import Node, program_of, read
from hydrabench.bounds.program.relu import Relu, rectified
from hydrabench.bounds.program.structure import Flatten, Identity

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


@settings(max_examples=48)
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


@settings(max_examples=24)
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


@settings(max_examples=60)
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


# A ReLU without gradients ----------------------------------------------------------------------


def box_of(centers, widths):
    return Interval(torch.tensor(centers), torch.tensor(widths))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_rectified_box_worked_by_hand(in_place):
    """[1, 3] stays, [-3, -1] becomes 0, [-1, 3] becomes [0, 3], [-3, 1] becomes [0, 1]; so on for the rest."""
    given = box_of([2.0, -2, 1, -1, 1, -1, 2, -2], [2.0, 2, 4, 4, 2, 2, 0, 0])
    found = rectified(given, in_place=in_place)
    assert found.center.tolist() == [2.0, 0, 1.5, 0.5, 1, 0, 2, 0]
    assert found.width.tolist() == [2.0, 0, 3, 1, 2, 0, 0, 0]


numbers = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38])


@settings(max_examples=200)
@given(values=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40), in_place=st.booleans())
def test_a_rectified_box_is_the_plain_rules_but_for_rounding(values, in_place):
    """Corners are off by a few roundings of the largest number involved, and of one point nothing at all is lost."""
    center, width = torch.tensor(values).unbind(1)
    width = width.abs()
    lower, upper = ((center.double() + side * width.double() / 2).clamp(min=0) for side in (-1, 1))
    found = rectified(Interval(center.clone(), width.clone()), in_place=in_place)
    slack = 4 * 2.0**-24 * (center.double().abs() + width.double()) + 1e-44
    finite = center.double().abs() + width.double() < 3e38
    for mine, exact in ((-1, lower), (1, upper)):
        corner = found.center.double() + mine * found.width.double() / 2
        assert ((corner - exact).abs() <= slack)[finite].all()
    assert (found.width >= 0)[finite].all()
    point = width == 0
    assert torch.equal(found.center[point], center[point].relu())


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("size", [1, 40])  # alone, and in the vectors that processors take at once
def test_nothing_is_known_behind_a_relu_where_nothing_was_known_before(in_place, size):
    """A bound made of NaN or infinity must not turn into one that looks like a proof."""
    nan, inf = torch.nan, torch.inf
    for center, width in ((nan, 1.0), (1.0, nan), (-1.0, nan), (nan, nan), (nan, inf), (inf, nan), (-inf, nan)):
        found = rectified(box_of([center] * size, [width] * size), in_place=in_place)
        assert found.center.isnan().all(), (center, width)
        assert found.lower().isnan().all()
    for center in (1.0, -1.0, inf, -inf):
        found = rectified(box_of([center] * size, [inf] * size), in_place=in_place)
        assert found.lower().isnan().all(), center
    found = rectified(box_of([-inf] * size, [1.0] * size), in_place=in_place)
    assert (found.center == 0).all()
    assert (found.width == 0).all()


def plain_values(nodes, box):
    """Every box by the plain rules."""
    values = [box]
    for node in nodes:
        values.append(node.operation.interval(*(values[number] for number in node.inputs)))
    return values


@pytest.mark.parametrize("keep", [False, True])
@settings(max_examples=40)
@given(seed=seeds)
def test_a_pass_is_the_plain_rules_one_by_one_whatever_is_written_over(tiny_problem, tiny_dag, keep, seed):
    for network, x, _, _ in (tiny_problem(seed), tiny_dag(seed)):
        nodes = read(program_of(network.requires_grad_(False)))
        box = Interval(x.clone(), torch.full_like(x, 0.1))
        passed, values = propagate(nodes, box, keep=keep), plain_values(nodes, box)
        expected = values[-1]
        torch.testing.assert_close(passed.output.center, expected.center, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(passed.output.width, expected.width, rtol=1e-9, atol=1e-9)
        assert torch.equal(box.center, x)
        assert (box.width == 0.1).all()
        again = propagate(nodes, box, keep=keep)
        assert torch.equal(again.output.center, passed.output.center)
        assert again.before.keys() == passed.before.keys()
        for number, before in passed.before.items():
            torch.testing.assert_close(before.center, values[number].center, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(before.width, values[number].width, rtol=1e-9, atol=1e-9)


ONE = Dense(torch.tensor([[2.0]]), torch.tensor([-1.0]))
# (operation, values taken): each time a value is read again after a ReLU took it, as itself or under another name.
READ_AGAIN = {
    "by a sum": [(ONE, (0,)), (Relu(), (1,)), (Add(), (1, 2))],
    "by two ReLUs": [(ONE, (0,)), (Relu(), (1,)), (Relu(), (1,)), (Add(), (2, 3))],
    "as another value": [(ONE, (0,)), (Identity(), (1,)), (Relu(), (2,)), (Add(), (1, 3))],
    "flat": [(ONE, (0,)), (Flatten(), (1,)), (Relu(), (2,)), (Add(), (1, 3))],
    "the input": [(Relu(), (0,)), (Add(), (0, 1))],
    "the input under another name": [(Identity(), (0,)), (Relu(), (1,)), (Add(), (0, 2))],
}


@pytest.mark.parametrize("program", READ_AGAIN.values(), ids=READ_AGAIN)
def test_a_value_that_is_read_again_is_not_written_over(program):
    nodes = [Node(*node) for node in program]
    x, width = torch.tensor([[0.2], [0.4], [0.9], [-0.5]]), torch.tensor([[0.1], [0.3], [0.2], [2.0]])
    given = Interval(x.clone(), width.clone())
    for _ in range(2):
        passed = propagate(nodes, given)
        expected = plain_values(nodes, Interval(x, width))[-1]
        torch.testing.assert_close(passed.output.center, expected.center)
        torch.testing.assert_close(passed.output.width, expected.width)
        assert torch.equal(given.center, x)
        assert torch.equal(given.width, width)


def test_training_is_left_alone():
    """With gradients, the arithmetic, which decides the bits of every checkpoint, is that of the plain rules."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU()]
    network = nn.Sequential(*layers).eval()
    x, gradients = torch.rand(2, 3, 8, 8), []
    for passing in (lambda *given: propagate(*given).output, lambda *given: plain_values(*given)[-1]):
        network.zero_grad()
        output = passing(read(program_of(network)), Interval(x, torch.full_like(x, 0.1)))
        (output.center.sum() - output.width.square().sum()).backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
