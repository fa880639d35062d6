"""What every elementwise activation says about itself: boxes, lines of any slope, good slopes, in both precisions."""

import inspect
import math

import pytest
import torch
from torch import nn

from hydrabench.bounds.program import activations, gated, smooth
from hydrabench.bounds.program.activations import Square
from hydrabench.bounds.program.piecewise import Piecewise
from hydrabench.bounds.program.smooth import Softplus
from tests.helpers.activation_operations import (
    ENDS,
    EXAMPLES,
    OPERATIONS,
    every_operation,
    intervals,
    of_type,
    precisions,
    tried_slopes,
)


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
