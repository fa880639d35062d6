from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.bounds.box import channels_last
from hydrabench.bounds.program.convolutions import Convolution

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


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


@settings(max_examples=150)
@given(problem=problems(), last=st.booleans())
def test_a_convolution_is_transposed(problem, last):
    operation, value, rows = problem
    rows = channels_last(rows) if last else rows
    (found,) = operation.back(rows, [value.shape])
    # The definition: <A, W v> = <W' A, v>.
    torch.testing.assert_close((found * value).sum((1, 2, 3)), (rows * operation.apply(value)).sum((1, 2, 3)))
