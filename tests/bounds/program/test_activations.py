"""What every elementwise activation says about itself: boxes, lines of any slope, good slopes, in both precisions."""

import inspect
import itertools
import math

import mpmath
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydrabench.bounds.program import activations, gated, smooth
from hydrabench.bounds.program.activations import Absolute, Clamp, Hardsigmoid, Hardswish, LeakyRelu, Prelu, Square
from hydrabench.bounds.program.gated import Gelu, Silu, TanhGelu
from hydrabench.bounds.program.piecewise import Piecewise
from hydrabench.bounds.program.smooth import Elu, Sigmoid, Softplus, Tanh

SELU = Elu(1.6732632423543772848, 1.0507009873554804934)
EXAMPLES = {  # an operation, and what torch calls it; a new class needs one line here
    "leaky": (LeakyRelu(0.1), nn.LeakyReLU(0.1)),
    "leaky, falling": (LeakyRelu(-0.7), nn.LeakyReLU(-0.7)),
    "leaky, steep": (LeakyRelu(2.5), nn.LeakyReLU(2.5)),
    "prelu": (Prelu(torch.tensor([0.25], dtype=torch.float64)), nn.PReLU(dtype=torch.float64)),
    "absolute": (Absolute(), torch.abs),
    "hardtanh": (Clamp(-0.5, 1.5), nn.Hardtanh(-0.5, 1.5)),
    "relu6": (Clamp(0.0, 6.0), nn.ReLU6()),
    "maximum": (Clamp(0.25, None), lambda x: torch.maximum(x, torch.tensor(0.25, dtype=x.dtype))),
    "minimum": (Clamp(None, 0.25), lambda x: x.clamp(max=0.25)),
    "hardsigmoid": (Hardsigmoid(), nn.Hardsigmoid()),
    "hardswish": (Hardswish(), nn.Hardswish()),
    "square": (Square(), torch.square),
    "elu": (Elu(1.0), nn.ELU()),
    "elu, steep": (Elu(2.0), nn.ELU(2.0)),
    "elu, flat": (Elu(0.5), nn.ELU(0.5)),
    "selu": (SELU, nn.SELU()),
    "celu": (Elu(0.7, 1.0, 1 / 0.7), nn.CELU(0.7)),
    "sigmoid": (Sigmoid(), nn.Sigmoid()),
    "tanh": (Tanh(), nn.Tanh()),
    "softplus": (Softplus(), nn.Softplus()),
    "softplus, falling": (Softplus(3.0, 2.0), nn.Softplus(3.0, 2.0)),
    "gelu": (Gelu(), nn.GELU()),
    "gelu, tanh": (TanhGelu(), nn.GELU(approximate="tanh")),
    "silu": (Silu(), nn.SiLU()),
}
OPERATIONS = {name: operation for name, (operation, _) in EXAMPLES.items()}
ENDS = [-1e6, -500, -61, -22, -6, -3.01, -2.4, -math.sqrt(2), -0.75, -0.3, -1e-9, 0, 1e-3, 0.25, 0.67, 1.5, 2.45, 4.5]
ENDS += [7, 19.5, 20.5, 500, 1e6]
SLOPES = [0.0, 1.0, -1.0, 0.25, -0.05, 1.05, 1e-6, 1.1289, -0.129, 17.0]

every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])


def of_type(operation, dtype):
    return Prelu(operation.weight.to(dtype)) if isinstance(operation, Prelu) else operation


def intervals(dtype=torch.float64):
    """All intervals between two of the ends, the same end twice included: two columns."""
    pairs = list(itertools.combinations_with_replacement(ENDS, 2))
    lower, upper = torch.tensor(pairs, dtype=torch.float64).to(dtype).sort(1).values.unbind(1)
    return lower.unsqueeze(1), upper.unsqueeze(1)


def tried_slopes(operation, lower, upper):
    """Fixed slopes, random ones and those that the operation itself chooses: (S, B, 1)."""
    random = torch.randn(2, *lower.shape, generator=torch.Generator().manual_seed(0)).to(lower)
    own = [*operation.slopes(lower, upper), operation.chord(lower, upper)]
    return torch.cat([torch.stack([torch.full_like(lower, s) for s in SLOPES] + own), random])


def sampled(operation, slope, lower, upper):
    """The smallest and the largest f(z) - slope z: of 2001 points, of 1201 in [-30, 30], and of some around these."""
    slope, lower, upper = slope.double(), lower.double(), upper.double()
    f, found = of_type(operation, torch.float64).apply, []
    evenly = lower + (upper - lower) * torch.linspace(0, 1, 2001, dtype=torch.float64)
    knees = torch.linspace(-30, 30, 1201, dtype=torch.float64).clamp(lower, upper)
    grids = [(z, f(z) - slope * z) for z in (evenly, knees)]  # on a tangent through an end there are two smallest ones
    for sign in (1, -1):
        lowest = []
        for z, values in grids:
            place = values.argmin(-1, keepdim=True) if sign > 0 else values.argmax(-1, keepdim=True)
            best = z.expand_as(values).gather(-1, place)
            for apart in (5e-4, 1e-5, 2e-7, 4e-9):
                near = best + apart * (upper - lower) * torch.linspace(-1, 1, 101, dtype=torch.float64)
                near = near.clamp(lower, upper)
                best = near.gather(-1, (sign * (f(near) - slope * near)).argmin(-1, keepdim=True))
            lowest.append(sign * (f(best) - slope * best))
        found.append(sign * torch.minimum(*lowest))
    return found[0], found[1]


def fall(operation):
    """By how much softplus falls near its threshold, which counts in full wherever an interval reaches beyond."""
    near = operation.threshold * (1 - 1e-6) if isinstance(operation, Softplus) else math.inf
    return math.log1p(math.exp(-near)) / operation.beta if near < math.inf else 0.0


def test_every_activation_has_an_example():
    classes = {
        kind
        for module in (activations, smooth, gated)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Piecewise) and not inspect.isabstract(kind)
    }
    assert len(classes) > 9
    assert classes == {type(operation) for operation in OPERATIONS.values()}


@pytest.mark.parametrize(("operation", "function"), EXAMPLES.values(), ids=EXAMPLES)
@precisions
def test_an_operation_computes_what_torch_does(operation, function, dtype):
    x = torch.tensor(ENDS, dtype=dtype).view(-1, 1)
    function = function.to(dtype) if isinstance(function, nn.Module) else function
    assert torch.equal(of_type(operation, dtype).apply(x), function(x))


@every_operation
def test_functions_are_rounded_no_more_than_their_ulps_say(operation):
    """Single against double precision; near the threshold of softplus either branch may be taken: lines hold both."""
    x = torch.cat([torch.linspace(-30, 30, 20_001), torch.logspace(-30, 30, 2001), -torch.logspace(-30, 30, 2001)])
    if isinstance(operation, Softplus):
        x = x[(x * operation.beta / operation.threshold - 1).abs() > 1e-6]
    x, kind = x.unsqueeze(1), torch.finfo(torch.float32)
    exact, found = operation.apply(x.double()), of_type(operation, torch.float32).apply(x).double()
    finite = exact.abs() * 6 < kind.max
    off = (found - exact).abs()[finite]
    assert (off <= (operation.ulps * kind.eps * (exact.abs() + x.abs()) + kind.tiny)[finite]).all()


@every_operation
@precisions
def test_lines_of_any_slope_hold_at_every_point_and_touch_the_function(operation, dtype):
    operation, (lower, upper) = of_type(operation, dtype), intervals(dtype)
    slope = tried_slopes(operation, lower, upper)
    low, high = operation.extremes(slope, lower, upper)
    assert low.dtype == high.dtype == dtype
    least, most = sampled(operation, slope, lower, upper)
    size = operation.size(lower, upper) + slope.abs() * torch.maximum(lower.abs(), upper.abs())
    rounding = operation.rounding(slope, lower, upper)
    assert (rounding < 130 * torch.finfo(dtype).eps * (size + 1)).all()
    assert (low.double() <= least + rounding).all()
    assert (high.double() >= most - rounding).all()
    missed = rounding + 1e-8 * (1 + size) + fall(operation)
    assert (low.double() >= least - missed).all()
    assert (high.double() <= most + missed).all()


@every_operation
@precisions
def test_boxes_hold_every_value_and_are_attained(operation, dtype):
    operation, (lower, upper) = of_type(operation, dtype), intervals(dtype)
    low, high = operation.box(lower, upper)
    least, most = sampled(operation, torch.zeros(1, 1, 1), lower, upper)
    rounding = operation.slack(torch.finfo(dtype).eps, torch.finfo(dtype).tiny, lower, upper)
    assert (low.double() <= least + rounding).all()
    assert (high.double() >= most - rounding).all()
    missed = rounding + 1e-8 * (1 + operation.size(lower, upper)) + fall(operation)
    assert (low.double() >= least - missed).all()
    assert (high.double() <= most + missed).all()


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


@every_operation
def test_derivatives_are_those_of_autograd(operation):
    x = torch.linspace(-11.03, 11.07, 301, dtype=torch.float64).view(-1, 1).requires_grad_()
    (expected,) = torch.autograd.grad(operation.value(x).sum(), x)
    assert torch.allclose(operation.derivative(x), expected, atol=1e-12)
    for curve in operation.shape.curves:
        start, end = (-math.inf, *operation.shape.knots, math.inf)[curve.piece : curve.piece + 2]
        inside = ((x > start) & (x < end)).flatten()
        slope = curve.derivative(x[inside].detach())
        assert torch.allclose(slope, expected[inside], atol=1e-12)
        assert torch.allclose(curve.derivative(curve.touch(slope)), slope, atol=1e-10)


@every_operation
def test_no_other_slope_leaves_a_smaller_area(operation):
    """The area between f and a line falls as the line rises, below, at the middle of the interval."""
    lower, upper = (end[(torch.cat(intervals(), 1).abs() < 100).all(1)] for end in intervals())
    below, above = operation.slopes(lower, upper)
    middle, size = (lower + upper) / 2, 1 + lower.abs() + upper.abs()
    steepest = 50 if isinstance(operation, Square) else operation.steepness
    others = torch.linspace(-steepest, steepest, 801, dtype=torch.float64).view(-1, 1, 1)
    low, high = operation.extremes(others, lower, upper)
    assert (operation.extremes(below, lower, upper)[0] + below * middle >= low + others * middle - 1e-9 * size).all()
    assert (operation.extremes(above, lower, upper)[1] + above * middle <= high + others * middle + 1e-9 * size).all()


@every_operation
def test_at_a_point_lines_and_boxes_are_the_value(operation):
    x = torch.tensor(ENDS, dtype=torch.float64).view(-1, 1)
    value = operation.apply(x)
    for slope in (*operation.slopes(x, x), operation.chord(x, x), torch.full_like(x, -0.4)):
        assert slope.isfinite().all()
        for side in operation.extremes(slope, x, x):
            assert torch.allclose(side, value - slope * x, rtol=1e-12, atol=1e-14)
    for side in operation.box(x, x):
        assert torch.allclose(side, value, rtol=1e-12, atol=1e-14)


@every_operation
def test_where_a_function_is_linear_both_lines_are_it(operation):
    lower, upper = intervals()
    decided = operation.decided(lower, upper)
    below, above = (slope[decided] for slope in operation.slopes(lower, upper))
    assert torch.equal(below, above)
    low, high = (side[decided] for side in operation.extremes(operation.slopes(lower, upper)[0], lower, upper))
    assert torch.allclose(low, high, atol=1e-9)  # of 1e6
    middle = torch.lerp(lower, upper, 0.3)[decided]
    assert torch.allclose(operation.apply(middle), below * middle + low, atol=1e-9)
    assert not operation.decided(*torch.full((2, 1, 1), math.nan)).any()


@every_operation
def test_gradients_with_respect_to_slopes_are_those_of_finite_differences(operation):
    generator = torch.Generator().manual_seed(2)
    ends = 3 * torch.randn(200, 2, 1, generator=generator, dtype=torch.float64)
    lower, upper = ends.sort(1).values.unbind(1)
    slope = torch.rand(200, 1, generator=generator, dtype=torch.float64).requires_grad_()
    step = 1e-6
    for side in (0, 1):
        (found,) = torch.autograd.grad(operation.extremes(slope, lower, upper)[side].sum(), slope)
        with torch.no_grad():
            ahead, behind = (operation.extremes(slope + move, lower, upper)[side] for move in (step, -step))
        difference = (ahead - behind) / (2 * step)
        assert ((-found >= lower - 1e-12) & (-found <= upper + 1e-12)).all()
        assert torch.allclose(found, difference, atol=2e-4)


@every_operation
def test_gradients_with_respect_to_the_interval_are_finite(operation):
    lower, upper = (end[:, 0].clone().unsqueeze(1).requires_grad_() for end in intervals())
    below, above = operation.slopes(lower, upper)
    total = operation.extremes(below, lower, upper)[0].sum() + operation.extremes(above, lower, upper)[1].sum()
    for found in torch.autograd.grad(total, (lower, upper)):
        assert found.isfinite().all()


@every_operation
@precisions
def test_without_limits_lines_are_vacuous_on_the_safe_side(operation, dtype):
    operation, far = of_type(operation, dtype), torch.finfo(dtype).max
    ends = torch.tensor(
        [[-math.inf, 2], [-2, math.inf], [-math.inf, math.inf], [math.nan, 2], [-far, far]], dtype=dtype
    )
    lower, upper = ends.unsqueeze(2).unbind(1)
    for slope in (*operation.slopes(lower, upper), torch.zeros_like(lower), torch.full_like(lower, 0.5)):
        low, high = operation.extremes(slope, lower, upper)
        z = torch.tensor([[-1e4], [1e4], [0.0], [1.0], [-1e4]], dtype=dtype)
        assert (low <= operation.apply(z) - slope * z).all()
        assert (high >= operation.apply(z) - slope * z).all()


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "hardsigmoid", "hardtanh", "relu6"])
def test_a_bounded_function_stays_bounded_on_all_numbers(name):
    operation = OPERATIONS[name]
    lower, upper = torch.tensor([[-math.inf]]), torch.tensor([[math.inf]])
    low, high = operation.extremes(torch.zeros(1, 1), lower, upper)
    assert (low, high) == (operation.apply(lower), operation.apply(upper))


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


# By hand ---------------------------------------------------------------------------------------

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
