"""Activations worked by hand, in thirty digits and in exact arithmetic; settings out of range are refused."""

import math

import mpmath
import pytest
import torch
from torch.nn import functional as F

from hydrabench.bounds.program.activations import Absolute, Clamp, Hardsigmoid, Hardswish, LeakyRelu, Prelu, Square
from hydrabench.bounds.program.gated import Gelu, Silu, TanhGelu
from hydrabench.bounds.program.smooth import Elu, Sigmoid, Softplus, Tanh
from tests.helpers.activation_operations import OPERATIONS

EXACT = {
    "elu, steep": lambda z: 2 * mpmath.expm1(z) if z < 0 else z,
    "celu": lambda z: mpmath.mpf(0.7) * mpmath.expm1(z / mpmath.mpf(0.7)) if z < 0 else z,
    "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "tanh": mpmath.tanh,
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)) if z <= 20 else z,
    "gelu": lambda z: z * mpmath.ncdf(z),
    "gelu, tanh": lambda z: z / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3))),
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
    "hardswish": lambda z: z * min(max(z + 3, 0), 6) / 6,
}


@pytest.mark.parametrize("name", EXACT)
def test_widened_by_their_rounding_lines_hold_in_exact_arithmetic(name):
    """The widest claim that `sound` makes: on narrow intervals rounding is all that separates line and function."""
    operation, exact = OPERATIONS[name], EXACT[name]
    generator = torch.Generator().manual_seed(1)
    lower = torch.randn(60, 1, generator=generator, dtype=torch.float64) * 3
    upper = lower + 10.0 ** -(torch.rand(60, 1, generator=generator, dtype=torch.float64) * 16)
    lines = operation.rounded_lines(lower, upper)
    (below,), (above,) = lines.below, lines.above
    least, most = operation.rounded_box(lower, upper)
    with mpmath.workdps(40):
        for row in range(60):
            for share in (0.0, 0.3, 0.5, 1.0):
                z = mpmath.mpf(lower[row].item()) * (1 - share) + mpmath.mpf(upper[row].item()) * share
                value = exact(z)
                assert below[row].item() * z + lines.low[row].item() <= value
                assert value <= above[row].item() * z + lines.high[row].item()
                assert least[row].item() <= value <= most[row].item()


@pytest.mark.parametrize("kind", [Gelu, TanhGelu, Silu])
def test_constants_of_gated_functions_in_thirty_digits(kind):
    exact = EXACT[{Gelu: "gelu", TanhGelu: "gelu, tanh", Silu: "silu"}[kind]]
    with mpmath.workdps(40):
        c = mpmath.findroot(lambda z: mpmath.diff(exact, z, 2), kind.inflection)
        bottom = mpmath.findroot(lambda z: mpmath.diff(exact, z), kind.bottom)
        assert (kind.inflection, kind.bottom) == (
            pytest.approx(float(c), rel=4e-16),
            pytest.approx(float(bottom), rel=4e-16),
        )
        assert abs(mpmath.diff(exact, c)) < kind().steepness


def test_weights_of_prelu_belong_to_channels():
    operation = Prelu(torch.tensor([0.5, -1.0]))
    lower, upper = -torch.ones(1, 2, 2, 2), 3 * torch.ones(1, 2, 2, 2)
    low, high = operation.box(lower, upper)
    assert (low[:, 0] == -0.5).all()
    assert (low[:, 1] == 0).all()
    assert (high == 3).all()
    below, above = operation.slopes(lower, upper)
    assert (below == 1).all()
    assert (above[:, 0] == 3.5 / 4).all()
    assert (above[:, 1] == 0.5).all()


GOLDEN = {  # operation, slope, interval, smallest and largest f(z) - slope z
    "leaky: .3 - .95 · .3 at both ends, 0 at 0": (LeakyRelu(0.9), 0.95, -0.3, 0.3, 0.0, 0.015),
    "absolute: 1 + .5 and 3 - 1.5 at the ends": (Absolute(), 0.5, -1.0, 3.0, 0.0, 1.5),
    "relu6: 0 at 0, 6 - 3 at 6, 1 and 2 at the ends": (Clamp(0.0, 6.0), 0.5, -2.0, 8.0, 0.0, 3.0),
    "hardsigmoid: 0 + 1 and 1 - 1 at the ends": (Hardsigmoid(), 1 / 6, -6.0, 6.0, 0.0, 1.0),
    "hardswish: z^2 / 6": (Hardswish(), 0.5, -3.0, 3.0, 0.0, 1.5),
    "square: 1/4 - 1/2 at 1/2": (Square(), 1.0, -1.0, 2.0, -0.25, 2.0),
    "elu: exp(z) = 1/2": (Elu(1.0), 0.5, -10.0, 1.0, -0.5 + math.log(2) / 2, math.exp(-10) - 1 + 5),
    "elu: 2 exp(z) = 1": (Elu(2.0), 1.0, -2.0, 1.0, -1 + math.log(2), 2 * math.exp(-2)),
    "sigmoid: 3/4 · 1/4": (Sigmoid(), 3 / 16, -2.0, 2.0, 0.25 + 3 / 16 * math.log(3), 0.75 - 3 / 16 * math.log(3)),
    "tanh: 1 - 1/4": (Tanh(), 0.75, -1.0, 1.0, -0.5 + 0.75 * math.log(3) / 2, 0.5 - 0.75 * math.log(3) / 2),
    "softplus: even about 0": (Softplus(), 0.5, -3.0, 3.0, math.log(2), math.log(1 + math.exp(3)) - 1.5),
    "gelu: z times an odd function": (Gelu(), 0.5, -1.0, 2.0, 0.0, math.erf(math.sqrt(2))),
    "silu: z tanh(z / 2) / 2": (Silu(), 0.5, -1.0, 2.0, 0.0, math.tanh(1)),
}


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN)
def test_extremes_worked_by_hand(case):
    operation, *numbers = case
    slope, lower, upper, *expected = (torch.tensor([[number]], dtype=torch.float64) for number in numbers)
    found = operation.extremes(slope, lower, upper)
    assert [side.item() for side in found] == pytest.approx([side.item() for side in expected], abs=1e-14)


def test_slopes_worked_by_hand():
    """The rules of the field: adaptive slopes of kinks, tangents of S-shapes through an end, chords of convex parts."""
    lower, upper = torch.tensor([[[-1.0], [-3.0]], [[3.0], [1.0]]], dtype=torch.float64)

    def slopes(operation):
        return [side.flatten().tolist() for side in operation.slopes(lower, upper)]

    assert slopes(LeakyRelu(0.5)) == [[1.0, 0.5], [3.5 / 4, 2.5 / 4]]
    assert slopes(LeakyRelu(2.0)) == [[5 / 4, 7 / 4], [1.0, 2.0]]
    assert slopes(Absolute()) == [[1.0, -1.0], [0.5, -0.5]]
    assert slopes(Square()) == [[2.0, -2.0], [2.0, -2.0]]
    assert slopes(Clamp(0.0, 0.5)) == [[0.5 / 3, 0.0], [0.0, pytest.approx(0.5 / 3.5)]]
    lower, upper = lower * 0.9, upper * 0.9
    below, above = slopes(Tanh())
    assert below[0] == pytest.approx((math.tanh(2.7) + math.tanh(0.9)) / 3.6)  # less than f'(l): no tangent is needed
    assert above[0] == pytest.approx(1 - math.tanh(0.9) ** 2)  # at the middle, right of the tangent point
    assert (above[1], below[1]) == (pytest.approx(below[0]), pytest.approx(above[0]))


def test_the_tangent_of_an_s_shape_passes_through_the_end():
    lower, upper = torch.tensor([[-6.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)
    _, above = Sigmoid().slopes(lower, upper)
    offset = Sigmoid().extremes(above, lower, upper)[1]
    assert (offset + above * lower).item() == pytest.approx(torch.sigmoid(lower).item(), abs=1e-9)
    below, _ = Sigmoid().slopes(lower, torch.tensor([[6.5]], dtype=torch.float64))
    assert 0 < below.item() < 0.25


def test_the_smallest_value_of_a_leaky_neuron():
    """leaky(x - 1/2) with slope 0.9 for x in [0.2, 0.8]: -0.27; a ReLU's lines would have said -0.15."""
    lower, upper = torch.tensor([[-0.3]]), torch.tensor([[0.3]])
    assert LeakyRelu(0.9).box(lower, upper)[0].item() == pytest.approx(-0.27)
    lines = LeakyRelu(0.9).strip(lower, upper)
    assert (lines.low + lines.below[0] * lower).item() <= -0.27 + 1e-7


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Clamp(1.0, 0.0),
        lambda: Clamp(None, None),
        lambda: Elu(0.0),
        lambda: Elu(1.0, -1.0),
        lambda: Softplus(0.0),
    ],
)
def test_settings_outside_of_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match="out of range: "):
        wrong()


def test_activations_keep_the_constants_of_channels_unless_they_differ():
    channels = torch.tensor([1.0, math.nan])
    assert Sigmoid().known_channels(channels)[0] == torch.sigmoid(torch.tensor(1.0))
    assert Prelu(torch.tensor([0.5, 1.0])).known_channels(channels) is None
    assert F.prelu(torch.ones(1, 2), torch.tensor([0.5, 1.0])).equal(torch.ones(1, 2))
