from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from hydrabench.bounds import crown, crown_ibp_margins, interval_margins, program_of, read
from hydrabench.bounds.backward import Run, runs
from hydrabench.bounds.box import Interval
from hydrabench.bounds.crown import lower_bounds
from hydrabench.bounds.interval import propagate
from hydrabench.bounds.program.relu import relaxation


def linear(weight, bias):
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return layer


def one_relu(bias):
    """Logits (relu(4 x + bias), 0) of one pixel."""
    return nn.Sequential(nn.Flatten(), linear([[4.0]], [bias]), nn.ReLU(), linear([[1.0], [0.0]], [0.0, 0.0]))


def margins_over_the_pixel_range(network, label):
    return crown_ibp_margins(network, torch.full((1, 1, 1, 1), 0.5), torch.tensor([label]), 0.5).item()


def test_a_mostly_active_neuron_worked_by_hand():
    """x in [0, 1], z = 4x - 1 in [-1, 3]: slope above 3/4, so the line below has slope 1.

    Label 0: relu(z) >= z >= -1 (the interval bound would be 0). Label 1: -relu(z) >= -(3/4 z + 3/4) =
    -3x >= -3.
    """
    assert margins_over_the_pixel_range(one_relu(-1.0), 0) == pytest.approx(-1.0)
    assert margins_over_the_pixel_range(one_relu(-1.0), 1) == pytest.approx(-3.0)


def test_a_mostly_inactive_neuron_worked_by_hand():
    """z = 4x - 3 in [-3, 1]: slope above 1/4, so the line below is 0.

    Label 0: relu(z) >= 0. Label 1: -relu(z) >= -(z / 4 + 3/4) = -x >= -1.
    """
    assert margins_over_the_pixel_range(one_relu(-3.0), 0) == pytest.approx(0.0)
    assert margins_over_the_pixel_range(one_relu(-3.0), 1) == pytest.approx(-1.0)


def test_two_equal_neurons_cancel_as_far_as_their_lines_do():
    """h1 - h2 with both = relu(4x - 1): h1 >= z, -h2 >= -(3/4 z + 3/4), together z/4 - 3/4 = x - 1 >= -1.

    Intervals forget that both neurons see the same pixel: 0 - 3.
    """
    network = nn.Sequential(
        nn.Flatten(), linear([[4.0], [4.0]], [-1.0, -1.0]), nn.ReLU(), linear([[1.0, -1.0], [0.0, 0.0]], [0.0, 0.0])
    )
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    assert crown_ibp_margins(network, x, y, 0.5).item() == pytest.approx(-1.0)
    assert interval_margins(network, x, y, 0.5).item() == pytest.approx(-3.0)


def test_lines_around_a_relu_worked_by_hand():
    """[-1, 3]: 3/4 z + 3/4 above, z below. [-3, 1]: z/4 + 3/4 above, 0 below. Even split [-2, 2]: 0 below.

    [1, 2] is passed as it is, [-2, -1] becomes 0, and [0, 0] must not divide by zero.
    """
    lower = torch.tensor([-1.0, -3.0, -2.0, 1.0, -2.0, 0.0])
    upper = torch.tensor([3.0, 1.0, 2.0, 2.0, -1.0, 0.0])
    below, above, offset = relaxation(lower, upper)
    assert below.tolist() == [1, 0, 0, 1, 0, 1]
    assert above.tolist() == [0.75, 0.25, 0.5, 1, 0, 1]
    assert offset.tolist() == [0.75, 0.75, 1.0, 0, 0, 0]


@given(low=st.floats(-10, 10), span=st.floats(0, 10), share=st.floats(0, 1))
def test_the_lines_enclose_the_relu(low, span, share):
    lower, upper = torch.tensor([low], dtype=torch.float64), torch.tensor([low + span], dtype=torch.float64)
    z = lower + share * (upper - lower)
    below, above, offset = relaxation(lower, upper)
    assert below * z - 1e-12 <= z.relu() <= above * z + offset + 1e-7


def exact_minimum(network, x, label, epsilon):
    """True smallest margin of Flatten, Linear(2, n), ReLU, Linear(n, 2): one linear program per ReLU pattern."""
    first, last = network[1], network[3]
    weight, bias = first.weight.detach(), first.bias.detach()
    row = (last.weight[label] - last.weight[1 - label]).detach()
    constant = (last.bias[label] - last.bias[1 - label]).item()
    box = [(max(0.0, v - epsilon), min(1.0, v + epsilon)) for v in x.flatten().tolist()]
    found = []
    for pattern in itertools.product([0.0, 1.0], repeat=len(bias)):
        on = torch.tensor(pattern, dtype=torch.float64)
        sides = (1 - 2 * on).unsqueeze(1) * weight, (2 * on - 1) * bias  # sides @ x <= bounds on this pattern
        cost, left, right = ((row * on) @ weight).numpy(), sides[0].numpy(), sides[1].numpy()
        solution = linprog(cost, A_ub=left, b_ub=right, bounds=box)
        if solution.success:
            found.append(solution.fun + constant + float((row * on) @ bias))
    return min(found)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), epsilon=st.floats(0, 0.6))
def test_no_bound_exceeds_the_true_minimum_found_by_enumerating_relu_patterns(seed, epsilon):
    rng = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
    x, label = torch.rand(1, 2, 1, 1, generator=rng, dtype=torch.float64), seed % 2
    truth = exact_minimum(network, x, label, epsilon)
    y = torch.tensor([label])
    for bound in (interval_margins, crown_ibp_margins):
        assert bound(network, x, y, epsilon).item() <= truth + 1e-7
    pre = network[1](x.flatten(1)).abs() - network[1].weight.abs().sum(1) * epsilon
    if (pre > 0).all():  # every ReLU is stable on the ball: then nothing is relaxed
        clipped = ((x - epsilon < 0) | (x + epsilon > 1)).any()
        assert clipped or crown_ibp_margins(network, x, y, epsilon).item() == pytest.approx(truth, abs=1e-6)


def test_crown_is_exact_where_every_relu_is_stable():
    """Hidden neurons 2x + 1 and -x - 1 on [0, 1] are on and off: margin (2x + 1) - 2, smallest -1 at x = 0."""
    network = nn.Sequential(
        nn.Flatten(), linear([[2.0], [-1.0]], [1.0, -1.0]), nn.ReLU(), linear([[1.0, 7.0], [0.0, 0.0]], [0.0, 2.0])
    )
    assert margins_over_the_pixel_range(network, 0) == pytest.approx(-1.0)
    assert exact_minimum(network.double(), torch.full((1, 1), 0.5), 0, 0.5) == pytest.approx(-1.0)


# Parts -----------------------------------------------------------------------------------------


def functions_of(network, x, count, rng):
    """A program, what a pass of intervals left, and `count` random functions of the values before its last layer."""
    nodes = read(program_of(network))[:-1]
    box = Interval.between((x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1))
    passed = propagate(nodes, box, keep=True)
    rows = torch.randn(len(x), count, *passed.shapes[-1][1:], generator=rng, dtype=x.dtype)
    return nodes, box, passed, rows, torch.randn(len(x), count, generator=rng, dtype=x.dtype)


@settings(max_examples=16)
@given(seed=st.integers(0, 10_000))
def test_parts_give_what_the_whole_gives(tiny_dag, seed):
    """From one function of one image at a time to everything at once."""
    network, x, _, rng = tiny_dag(seed)
    given = functions_of(network, x, 5, rng)
    whole = lower_bounds(*given)
    largest = max(shape[1:].numel() for shape in given[2].shapes)
    for pairs in (0, 2, 7, 11):
        torch.testing.assert_close(lower_bounds(*given, memory=pairs * crown.LIVE * largest * 8), whole)


def spied(monkeypatch):
    """How many rows every part has that a pass takes, and how many of them each image: filled as passes are made."""
    seen, lower = [], crown._Pass._part

    def part(self, rows, offset, runs):
        seen.append((len(rows), [run.each for run in runs for _ in range(*run.images.indices(100))]))
        return lower(self, rows, offset, runs)

    monkeypatch.setattr(crown._Pass, "_part", part)
    return seen


def test_no_part_is_larger_than_the_memory_allows(tiny_problem, monkeypatch):
    """3 images with 5 functions each, 15 rows."""
    network, x, _, rng = tiny_problem(0)
    given = functions_of(network, x, 5, rng)
    seen = spied(monkeypatch)
    largest = max(shape[1:].numel() for shape in given[2].shapes)
    for pairs, parts in (
        (0, [(1, [1])] * 15),
        (3, [(3, [3]), (3, [2, 1]), (3, [3]), (3, [1, 2]), (3, [3])]),
        (10, [(10, [5, 5]), (5, [5])]),
        (15, [(15, [5, 5, 5])]),
    ):
        seen.clear()
        lower_bounds(*given, memory=pairs * crown.LIVE * largest * 8)
        assert seen == parts


@settings(max_examples=24)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), pairs=st.integers(1, 20), gradients=st.booleans())
def test_a_function_whose_constant_is_minus_infinity_is_left_out(tiny_dag, seed, share, pairs, gradients):
    """However many are left of each image, the bounds of the others stay."""
    network, x, _, rng = tiny_dag(seed)
    *given, rows, offset = functions_of(network, x, 5, rng)
    whole = lower_bounds(*given, rows, offset)
    closed = torch.rand(offset.shape, generator=rng) < share
    memory = pairs * crown.LIVE * max(shape[1:].numel() for shape in given[2].shapes) * 8
    with torch.set_grad_enabled(gradients):
        found = lower_bounds(*given, rows, offset.masked_fill(closed, -torch.inf), memory=memory)
    assert (found[closed] == -torch.inf).all()
    torch.testing.assert_close(found[~closed], whole[~closed], rtol=1e-10, atol=1e-10)


def test_functions_that_are_left_out_cost_nothing(tiny_problem, monkeypatch):
    """Of 3 images with 5 functions each, one image has none left and the others 1 and 2: 3 rows, the 2 first."""
    network, x, _, rng = tiny_problem(0)
    given = functions_of(network, x, 5, rng)
    offset = torch.full((3, 5), -torch.inf, dtype=torch.float64)
    offset[0, 4] = offset[2, 1] = offset[2, 3] = 1.0
    seen = spied(monkeypatch)
    found = lower_bounds(*given[:-1], offset)
    assert torch.equal(found > -torch.inf, offset > -torch.inf)
    assert seen == [(3, [2, 1])]
    assert torch.equal(lower_bounds(*given[:-1], torch.full_like(offset, -torch.inf)), offset - torch.inf)
    assert len(seen) == 1


def test_runs_worked_by_hand():
    """Images 0 and 1 have two functions each, 2 and 3 one each; of image 0 the part has only the second."""
    whole = [Run(slice(0, 2), slice(0, 4), 2), Run(slice(2, 4), slice(4, 6), 1)]
    assert runs([0, 0, 1, 1, 2, 3]) == whole
    assert runs([0, 1, 1, 2, 3]) == [
        *(Run(slice(0, 1), slice(0, 1), 1), Run(slice(1, 2), slice(1, 3), 2), Run(slice(2, 4), slice(3, 5), 1)),
    ]
    halves = [Run(slice(0, 1), slice(0, 2), 2), Run(slice(1, 2), slice(2, 4), 2)]
    assert list(whole[0].cut(3)) == list(whole[0].cut(0)) == halves
    assert list(whole[0].cut(4)) == whole[:1]
    assert whole[0].of(torch.arange(6)).tolist() == [[0, 1], [2, 3]]
    assert whole[1].of(torch.arange(6)).tolist() == [[4], [5]]


# Coefficients that are written over --------------------------------------------------------------


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), block=st.sampled_from([0, 1000, 2**21]))
def test_bounds_without_gradients_equal_those_with_them(tiny_dag, seed, block):
    """Values branch and meet again: what one branch writes over, no other may need. The caller's rows stay, too."""
    network, x, _, rng = tiny_dag(seed)
    given = functions_of(network, x, 5, rng)
    expected, rows = lower_bounds(*given), given[3].clone()
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(crown, "BLOCK", block)
        torch.testing.assert_close(lower_bounds(*given), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(given[3], rows)


class Branches(nn.Module):
    """Logits (h + relu(h), 0) with h = 4x - 1."""

    def __init__(self):
        super().__init__()
        self.first, self.last = linear([[4.0]], [-1.0]), linear([[1.0], [0.0]], [0.0, 0.0])

    def forward(self, x):
        h = self.first(x.flatten(1))
        return self.last(h + torch.relu(h))


def test_a_branch_keeps_coefficients_that_the_other_relaxes_worked_by_hand():
    """Label 1: -h - relu(h) >= -h - (3/4 h + 3/4) = -7/4 h - 3/4 = -7x + 1 >= -6 with h in [-1, 3].

    If relaxing wrote over the -1 of the shortcut, it would get -3/4 as well: -3/2 h - 3/4 >= -21/4.
    """
    with torch.no_grad():
        assert margins_over_the_pixel_range(Branches(), 1) == pytest.approx(-6.0)
        assert margins_over_the_pixel_range(Branches(), 0) == pytest.approx(-2.0)  # h + h


class AroundTheFirst(nn.Module):
    """Logits (sum of x - x, 0), the second x by a convolution."""

    def __init__(self):
        super().__init__()
        self.minus, self.head = nn.Conv2d(1, 1, 1, bias=False), linear([[1.0] * 4, [0.0] * 4], [0.0, 0.0])
        self.minus.weight.data.fill_(-1.0)

    def forward(self, x):
        return self.head((x + self.minus(x)).flatten(1))


@pytest.mark.parametrize("gradients", [True, False])
def test_a_shortcut_around_the_first_convolution_worked_by_hand(gradients):
    """The pixels cancel: margin 0 everywhere. Without gradients pixels may be sorted, but not if others read them."""
    with torch.set_grad_enabled(gradients):
        found = crown_ibp_margins(AroundTheFirst(), torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), 0.25)
    assert found.item() == 0


@pytest.mark.parametrize("layers", [[nn.ReLU()], [nn.ReLU(), nn.Identity()], [nn.ReLU(), nn.Flatten()]])
def test_rows_of_the_caller_stay_as_they_are(layers):
    nodes = read(program_of(nn.Sequential(*layers)))
    box = Interval(torch.zeros(2, 3), torch.full((2, 3), 2.0))
    rows = -torch.ones(2, 4, 3)
    with torch.no_grad():
        found = lower_bounds(nodes, box, propagate(nodes, box, keep=True), rows, torch.zeros(2, 4))
    assert (rows == -1).all()
    assert (found == -3.0).all()  # -relu(z) >= -z/2 - 1/2 >= -1, three times


def test_nan_stays_with_its_image(tiny_problem):
    network, x, _, rng = tiny_problem(2)
    *given, rows, offset = functions_of(network, x, 5, rng)
    rows[1, 2] = torch.nan
    offset[0, :4], offset[2, 3] = -torch.inf, torch.nan
    with torch.no_grad():
        found = lower_bounds(*given, rows, offset)
    expected = torch.zeros(3, 5, dtype=torch.bool)
    expected[1, 2] = expected[2, 3] = True
    assert torch.equal(found.isnan(), expected)


@pytest.mark.parametrize(
    "options", [{"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 0)}, {"stride": (3, 1)}]
)
def test_rows_come_out_of_a_convolution_as_its_gradients(options):
    """Strides that leave pixels over, uneven kernels and padding, dilation."""
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 5, (3, 2), **options).double()
    x = torch.rand(2, 2, 7, 8, dtype=torch.float64, requires_grad=True)
    images = layer(x)
    rows = torch.randn(2, 3, *images.shape[1:], dtype=torch.float64)
    (node,) = read(program_of(layer))
    (found,), gain = (way(rows.flatten(0, 1), [x.shape]) for way in (node.operation.back, node.operation.gain))
    found, gain = found.unflatten(0, (2, 3)), gain.view(2, 3)
    for number in range(3):
        (exact,) = torch.autograd.grad(images, x, rows[:, number], retain_graph=True)
        torch.testing.assert_close(found[:, number], exact)
    torch.testing.assert_close(gain, rows.sum((3, 4)) @ layer.bias)
