from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hydrabench.bounds import class_margins
from hydrabench.bounds.interval import Interval, channels_last
from hydrabench.bounds.operations import Convolution
from hydrabench.bounds.products import products
from hydrabench.bounds.transposed import (
    apart,
    has_grid,
    has_phases,
    phases,
    pixel_grid,
    plain,
    squares,
    transposed,
)
from hydrabench.models import MODELS

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@st.composite
def problems(draw):
    """A convolution, its input's size, which windows need not fill, and coefficients of its output."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    size = tuple(taps + draw(st.integers(0, 4)) for taps in kernel)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    weight = torch.randn(2, 3, *kernel, generator=generator, dtype=torch.float64)
    operation = Convolution(weight, None, draw(pairs), padding, (1, 1), 1)
    value = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    return operation, value, torch.randn(*operation.apply(value).shape, generator=generator, dtype=torch.float64)


def test_phases_of_one_filter_worked_by_hand():
    """Kernel 1 2 3 4, stride 2: 10 at spot 0 and 1 at spot 1 give 10 20 30+1 40+2 3 4, even and odd pixels apart."""
    operation = Convolution(torch.tensor([[[[1.0, 2, 3, 4]]]]), None, (1, 2), (0, 1), (1, 1), 1)
    rows = torch.tensor([[[[10.0, 1.0]]]])
    assert phases(operation, rows).tolist() == [[[[10.0, 31.0, 3.0]], [[20.0, 42.0, 4.0]]]]
    assert transposed(operation, rows, (1, 4)).tolist() == [[[[20.0, 31.0, 42.0, 3.0]]]]  # padding 1 cuts both ends
    assert transposed(operation, rows, (1, 5)).tolist() == [[[[20.0, 31.0, 42.0, 3.0, 4.0]]]]
    pixels = torch.tensor([[[[5.0, 6.0, 7.0, 8.0]]]])
    sorted_ = apart(Interval(pixels, pixels), operation, (1, 3))
    assert sorted_.center.tolist() == [[[[0.0, 6.0, 8.0]], [[5.0, 7.0, 0.0]]]]


@settings(deadline=None, max_examples=150)
@given(problem=problems(), last=st.booleans())
def test_a_convolution_is_transposed_as_torch_does_it(problem, last):
    operation, value, rows = problem
    rows = channels_last(rows) if last else rows
    found = transposed(operation, rows, value.shape[2:])
    torch.testing.assert_close(found, plain(operation, rows, value.shape[2:]))
    # The definition: <A, W v> = <W' A, v>.
    torch.testing.assert_close((found * value).sum((1, 2, 3)), (rows * operation.apply(value)).sum((1, 2, 3)))


@settings(deadline=None, max_examples=100)
@given(problem=problems())
def test_sorted_pixels_meet_their_coefficients(problem):
    operation, value, rows = problem
    grid = phases(operation, rows)
    sorted_ = apart(Interval(value, value.abs()), operation, grid.shape[2:])
    expected = (plain(operation, rows, value.shape[2:]).unsqueeze(1) * value.unsqueeze(1)).sum((2, 3, 4))
    torch.testing.assert_close(products(grid.unsqueeze(1), sorted_.center), expected)
    assert torch.equal(sorted_.width, sorted_.center.abs())  # 0 in the padding, too


@pytest.mark.parametrize(
    ("stride", "dilation", "groups"), [((1, 1), (1, 1), 1), ((2, 2), (2, 1), 1), ((2, 2), (1, 1), 3)]
)
def test_other_convolutions_are_left_to_torch(stride, dilation, groups):
    operation = Convolution(torch.ones(3, 3 // groups, 2, 2), None, stride, (0, 0), dilation, groups)
    assert not has_phases(operation, torch.ones(1, 3, 2, 2))


def test_squares_of_one_filter_worked_by_hand():
    """Kernel 1 2 3, padding 1: 10 at spot 0 and 1 at spot 1 give (10) 20 30+1 | 2 3 (4): even and odd pixels apart."""
    operation = Convolution(torch.tensor([[[[0.0] * 3, [1.0, 2, 3], [0.0] * 3]]]), None, (1, 1), (1, 1), (1, 1), 1)
    rows = torch.zeros(1, 1, 2, 4)
    rows[0, 0, 0, :2] = torch.tensor([10.0, 1.0])
    assert plain(operation, rows, (2, 4))[0, 0].tolist() == [[21.0, 32.0, 3.0, 0.0], [0.0] * 4]
    assert squares(operation, rows).tolist() == [[[[21.0, 3.0]], [[32.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]]]


@settings(deadline=None, max_examples=100)
@given(problem=problems(), stride=st.sampled_from([None, (1, 1)]))
def test_a_grid_of_pixels_meets_its_box(problem, stride):
    operation, value, rows = problem
    if stride:
        operation = replace(operation, stride=stride)
        rows = torch.randn(operation.apply(value).shape, dtype=torch.float64)
    assume(has_grid(operation, rows, value.shape[2:]))
    grid, pixels = pixel_grid(operation, rows, Interval(value, value.abs()))
    expected = (plain(operation, rows, value.shape[2:]) * value).sum((1, 2, 3))
    torch.testing.assert_close((grid * pixels.center).sum((1, 2, 3)), expected)
    assert torch.equal(pixels.width, pixels.center.abs())
    expected = (plain(operation, rows, value.shape[2:]).abs() * value.abs()).sum((1, 2, 3))
    torch.testing.assert_close((grid.abs() * pixels.width).sum((1, 2, 3)), expected)


@pytest.mark.parametrize(
    ("inputs", "kernel", "stride", "padding", "size", "grid"),
    [
        (3, 3, 1, 1, 8, True),
        (4, 1, 1, 0, 8, True),
        (5, 3, 1, 1, 8, False),  # squares would fill more than one vector
        (3, 3, 1, 1, 7, False),  # no whole squares
        (3, 2, 1, 2, 8, False),  # a window within the padding
        (3, 4, 2, 1, 8, True),
        (16, 4, 2, 1, 8, True),
        (32, 4, 2, 1, 8, False),  # torch fills its vectors
        (16, 3, 2, 1, 8, False),  # phases have 16 taps for 9
        (8, 3, 2, 1, 8, True),
    ],
)
def test_pixels_are_sorted_where_channels_are_few(inputs, kernel, stride, padding, size, grid):
    operation = Convolution(torch.ones(2, inputs, kernel, kernel), None, (stride,) * 2, (padding,) * 2, (1, 1), 1)
    assert has_grid(operation, torch.ones(1, 2, 2, 2), (size, size)) == grid
    with torch.enable_grad():
        assert has_grid(operation, torch.ones(1, 2, 2, 2), (size, size)) == (stride == 2)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("arch", ["cifar_model", "cifar_model_large", "vgg2_bn"])
def test_bounds_without_gradients_equal_those_to_train_with(arch, beta):
    torch.manual_seed(0)
    network = MODELS[arch].build((3, 16, 16), 10).double().eval()
    x, y = torch.rand(3, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 4, 9])
    found = class_margins(network, x, y, 2 / 255, beta=beta)
    with torch.enable_grad():
        torch.testing.assert_close(found, class_margins(network, x, y, 2 / 255, beta=beta).detach())
