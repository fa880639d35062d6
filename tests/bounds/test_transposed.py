from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hydrabench.bounds import class_margins, prepared
from hydrabench.bounds.box import Interval, channels_last
from hydrabench.bounds.crown import lower_bounds
from hydrabench.bounds.interval import concretize, propagate
from hydrabench.bounds.program.convolutions import Convolution
from hydrabench.bounds.transposed import by_phases, phases, phases_pay, pixels_by_phase, squares, squares_pay
from hydrabench.models import MODELS

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def problems(draw, stride=pairs, dtype=torch.float64, for_squares=False):
    """A convolution, its input, which windows need not fill, and coefficients of its output."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = tuple(draw(st.integers(0, taps - 1 if for_squares else 3)) for taps in kernel)
    size = tuple(taps + draw(st.integers(0, 4)) for taps in kernel)
    size = tuple(pixels + pixels % 2 for pixels in size) if for_squares else size
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    weight = torch.randn(2, 3, *kernel, generator=generator, dtype=dtype)
    operation = Convolution(weight, None, draw(stride), padding, (1, 1), 1)
    value = torch.randn(2, 3, *size, generator=generator, dtype=dtype)
    return operation, value, torch.randn(*operation.apply(value).shape, generator=generator, dtype=dtype)


def by_torch(operation, rows, size):
    """The transposed convolution as torch's own gradient of a convolution has it."""
    value = rows.new_zeros(len(rows), operation.weight.shape[1] * operation.groups, *size)
    return torch.func.vjp(operation.apply, value)[1](rows)[0]


def sorted_pixels(operation, value, grid):
    return pixels_by_phase(value, stride=operation.stride, padding=operation.padding, size=grid.shape[2:])


def test_phases_of_one_filter_worked_by_hand():
    """Kernel 1 2 3 4, stride 2: 10 at spot 0 and 1 at spot 1 give 10 20 30+1 40+2 3 4, even and odd pixels apart."""
    weight, rows = torch.tensor([[[[1.0, 2, 3, 4]]]]), torch.tensor([[[[10.0, 1.0]]]])
    assert phases(rows, weight, (1, 2)).tolist() == [[[[10.0, 31.0, 3.0]], [[20.0, 42.0, 4.0]]]]
    settings = {"stride": (1, 2), "padding": (0, 1)}  # the padding cuts both ends
    assert by_phases(rows, weight, size=(1, 4), **settings).tolist() == [[[[20.0, 31.0, 42.0, 3.0]]]]
    assert by_phases(rows, weight, size=(1, 5), **settings).tolist() == [[[[20.0, 31.0, 42.0, 3.0, 4.0]]]]
    pixels = torch.tensor([[[[5.0, 6.0, 7.0, 8.0]]]])
    assert pixels_by_phase(pixels, size=(1, 3), **settings).tolist() == [[[[0.0, 6.0, 8.0]], [[5.0, 7.0, 0.0]]]]


def test_squares_of_one_filter_worked_by_hand():
    """Kernel 1 2 3, padding 1: 10 at spot 0 and 1 at spot 1 give (10) 20 30+1 | 2 3 (4): even and odd pixels apart."""
    weight = torch.tensor([[[[0.0] * 3, [1.0, 2, 3], [0.0] * 3]]])
    rows = torch.tensor([[[[10.0, 1.0, 0.0, 0.0], [0.0] * 4]]])
    assert F.conv_transpose2d(rows, weight, padding=1)[0, 0].tolist() == [[21.0, 32.0, 3.0, 0.0], [0.0] * 4]
    assert squares(rows, weight, (1, 1)).tolist() == [[[[21.0, 3.0]], [[32.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]]]


@settings(max_examples=100)
@given(problem=problems(), last=st.booleans())
def test_phases_together_are_torchs_transposed_convolution(problem, last):
    operation, value, rows = problem
    rows, size = channels_last(rows) if last else rows, value.shape[2:]
    found = by_phases(rows, operation.weight, stride=operation.stride, padding=operation.padding, size=size)
    torch.testing.assert_close(found, by_torch(operation, rows, size))
    # The definition: <A, W v> = <W' A, v>.
    torch.testing.assert_close((found * value).sum((1, 2, 3)), (rows * operation.apply(value)).sum((1, 2, 3)))


@settings(max_examples=60)
@given(problem=problems())
def test_pixels_sorted_by_phase_meet_their_coefficients(problem):
    operation, value, rows = problem
    grid = phases(rows, operation.weight, operation.stride)
    expected = by_torch(operation, rows, value.shape[2:])
    found = (grid * sorted_pixels(operation, value, grid)).sum((1, 2, 3))
    torch.testing.assert_close(found, (expected * value).sum((1, 2, 3)))
    widths = sorted_pixels(operation, value.abs(), grid)  # 0 in the padding, whose coefficients are none of the pixels'
    torch.testing.assert_close((grid.abs() * widths).sum((1, 2, 3)), (expected * value).abs().sum((1, 2, 3)))


@settings(max_examples=60)
@given(problem=problems(stride=st.just((1, 1)), for_squares=True))
def test_pixels_sorted_by_squares_meet_their_coefficients(problem):
    operation, value, rows = problem
    assert squares_pay(operation.weight, operation.stride, operation.padding, value.shape[2:])
    found = squares(rows, operation.weight, operation.padding)
    torch.testing.assert_close(found, F.pixel_unshuffle(by_torch(operation, rows, value.shape[2:]), 2))


@settings(max_examples=60)
@given(
    problem=st.one_of(problems(dtype=torch.float32), problems(st.just((1, 1)), torch.float32, for_squares=True)),
    with_gradient=st.booleans(),
)
def test_coefficients_at_a_box_have_the_lowest_value_that_torch_finds(problem, with_gradient):
    operation, value, rows = problem
    box = Interval(value, value.abs())
    with torch.set_grad_enabled(with_gradient):
        found, sorted_box = operation.back_to_box(rows, box)
        lowest = concretize(found.unsqueeze(1), found.new_zeros(2, 1), sorted_box)
        (plain,) = operation.back(rows, [value.shape])
    torch.testing.assert_close(plain, by_torch(operation, rows, value.shape[2:]), rtol=1e-4, atol=1e-4)
    expected = concretize(plain.unsqueeze(1), plain.new_zeros(2, 1), box)
    torch.testing.assert_close(lowest, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "kernel", "stride", "padding", "size", "way"),
    [
        (3, 3, 1, 1, 8, "squares"),
        (4, 1, 1, 0, 8, "squares"),
        (5, 3, 1, 1, 8, "torch"),  # squares would fill more than one vector
        (3, 3, 1, 1, 7, "torch"),  # no whole squares
        (3, 2, 1, 2, 8, "torch"),  # a window within the padding
        (3, 4, 2, 1, 8, "phases"),
        (16, 4, 2, 1, 8, "phases"),
        (32, 4, 2, 1, 8, "torch"),  # torch fills its vectors
        (16, 3, 2, 1, 8, "torch"),  # phases have 16 taps for 9
        (8, 3, 2, 1, 8, "phases"),
    ],
)
def test_pixels_are_sorted_where_channels_are_few(inputs, kernel, stride, padding, size, way):
    weight, strides, paddings = torch.ones(2, inputs, kernel, kernel), (stride,) * 2, (padding,) * 2
    assert phases_pay(weight, strides) == (way == "phases")
    assert squares_pay(weight, strides, paddings, (size, size)) == (way == "squares")


@pytest.mark.parametrize(
    ("dilation", "groups", "dtype"), [(2, 1, torch.float32), (1, 3, torch.float32), (1, 1, torch.float64)]
)
def test_other_convolutions_are_left_to_torch(dilation, groups, dtype):
    operation = Convolution(
        torch.ones(3, 3 // groups, 2, 2, dtype=dtype), None, (2, 2), (0, 0), (dilation,) * 2, groups
    )
    value = torch.rand(1, 3, 6, 6, dtype=dtype)
    rows = torch.rand(operation.apply(value).shape, dtype=dtype)
    with torch.no_grad():
        found, box = operation.back_to_box(rows, Interval(value, value))
    assert box.center is value
    torch.testing.assert_close(found, by_torch(operation, rows, (6, 6)))


@pytest.mark.parametrize("arch", ["cifar_model", "cifar_model_large", "vgg2_bn"])
def test_sorted_pixels_change_neither_bounds_nor_gradients(arch):
    """In float64 torch's transposed convolution is used throughout."""
    torch.manual_seed(0)
    network = MODELS[arch].build((3, 16, 16), 10).eval()
    x, y = torch.rand(3, 3, 16, 16), torch.tensor([0, 4, 9])

    def margins_and_gradients(dtype):
        network.to(dtype).zero_grad()
        margins = class_margins(network, x.to(dtype), y, 2 / 255, beta=1.0)
        margins.square().mean().backward()
        return margins.detach(), [parameter.grad.clone() for parameter in network.parameters()]

    expected, slopes = margins_and_gradients(torch.float64)
    found, gradients = margins_and_gradients(torch.float32)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    for gradient, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(gradient, slope.float(), rtol=1e-3, atol=1e-4 * float(slope.abs().max()))
    with torch.no_grad():
        quick = class_margins(network, x, y, 2 / 255, beta=1.0)
    torch.testing.assert_close(quick, found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Flatten()), (torch.nn.Flatten(),), ()])
def test_a_network_that_starts_linearly_has_its_exact_lowest_value(layers):
    """Also one whose input is read by no operation, or by one that only moves it."""
    torch.manual_seed(0)
    nodes = prepared(torch.nn.Sequential(*layers).eval()).nodes
    box = Interval(torch.rand(2, 3, 6, 6), torch.rand(2, 3, 6, 6))
    with torch.no_grad():
        passed = propagate(nodes, box, keep=True)
        rows = torch.randn(2, 5, *passed.output.center.shape[1:])
        found = lower_bounds(nodes, box, passed, rows, torch.zeros(2, 5))
        corners = [torch.zeros(2, 5, *box.center.shape[1:]), torch.zeros(2, 5)]
    center = box.center.requires_grad_()
    for function in range(5):
        value = center
        for layer in layers:
            value = layer(value)
        total = (value * rows[:, function]).flatten(1).sum(1)
        (slope,) = torch.autograd.grad(total.sum(), center)
        corners[0][:, function] = slope
        corners[1][:, function] = total.detach()
    expected = corners[1] - (corners[0].abs() * box.width.unsqueeze(1)).flatten(2).sum(2) / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
