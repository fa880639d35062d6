"""Rows in windows: what lies outside the value is cut off, and only coefficients of one's own are written over."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hydrabench.bounds import BOUNDS, patches
from hydrabench.bounds.patches import Rows, single_pixels, unit_rows
from hydrabench.models.resnet import thin_resnet

SHAPE = torch.Size((1, 2, 7, 6))


def test_windows_are_cut_to_what_any_row_sees_worked_by_hand():
    """Neurons at rows 0 and 1 of 3 see rows -2..2 and 0..4 of 4 of the value: of five places each, 0 to 4 and 0 to 3.

    So nothing is cut off above, and nothing below. Of the neuron at row 0 alone, places 2 to 4 are left.
    """
    window = replace(single_pixels((3, 1)), size=(5, 1), stride=(2, 1), padding=(2, 0), last=(1, 0))
    assert window.cropped((4, 1)) == window
    top = replace(window, last=(0, 0))
    assert top.cropped((4, 1)) == replace(top, size=(3, 1), padding=(0, 0))
    assert not top.inside((4, 1))
    assert top.cropped((4, 1)).inside((4, 1))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 9), padding=st.integers(0, 4), count=st.integers(1, 3))
def test_cutting_changes_no_function(seed, size, padding, count):
    rng = torch.Generator().manual_seed(seed)
    neuron = torch.randint(SHAPE[1:].numel(), (count,), generator=rng)
    start = unit_rows(SHAPE, torch.zeros(count, dtype=torch.int64), neuron, torch.ones(1))
    assert start.window is not None
    window = replace(start.window, size=(size, size), padding=(padding, padding))
    rows = replace(start, coefficients=torch.randn(count, 2, size, size, generator=rng), window=window, inside=False)
    torch.testing.assert_close(rows.cropped(SHAPE).whole(SHAPE).coefficients, rows.whole(SHAPE).coefficients)


@pytest.mark.parametrize("fresh", [True, False])
def test_only_coefficients_that_nobody_else_reads_are_written_over(fresh):
    large = replace(single_pixels((3, 3)), size=(3, 3), padding=(1, 1))
    image, spot = torch.zeros(1, dtype=torch.int64), torch.tensor([4])
    coefficients, small = torch.ones(1, 1, 3, 3), torch.full((1, 1, 1, 1), 5.0)
    one = Rows(coefficients, image, large, spot, fresh=fresh)
    other = Rows(small, image, single_pixels((3, 3)), spot, fresh=True)
    with torch.no_grad():
        found = other.plus(one, torch.Size((1, 1, 3, 3)))
    assert found.coefficients.sum() == 14
    assert found.coefficients[0, 0, 1, 1] == 6
    assert (found.coefficients is coefficients) == fresh
    assert (coefficients.sum() == 9) != fresh
    assert small.item() == 5


class Largest(TorchDispatchMode):
    """The largest storage, in float32 numbers, that any call of torch made."""

    found = 0

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // 4 for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.found = max([self.found, *sizes])
        return result


@pytest.mark.parametrize("chunk", [2**15, 2**17])
def test_no_tensor_of_a_residual_network_is_larger_than_a_chunk_with_both_signs(chunk, monkeypatch):
    """The whole value has 2^12 entries, and its neurons 2^24 coefficients.

    A convolution adds a pixel on all sides of the 16 x 16, which is cut off again.
    """
    torch.manual_seed(0)
    network = thin_resnet(8, (3, 16, 16), 10).eval().requires_grad_(False)
    x, y = torch.rand(1, 3, 16, 16), torch.tensor([0])
    monkeypatch.setitem(patches.CHUNK, "cpu", chunk)
    with torch.no_grad(), Largest() as largest:
        BOUNDS["crown"](network, x, y, 4 / 255)
    assert chunk < largest.found <= 2 * chunk * 18**2 / 16**2
