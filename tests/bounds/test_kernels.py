from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.bounds import kernels as room
from hydrabench.bounds.kernels import combinations, minima, products, relax_, relaxed

seeds = st.integers(0, 10_000)
shapes = pytest.mark.parametrize("shape", [(7,), (3, 4, 2), (1, 2, 2)], ids=str)
layouts = pytest.mark.parametrize("last", [False, True], ids=["", "channels_last"])


def coefficients(seed, shape, *, last=False):
    """Coefficients (2, 3, *shape), a few of them 0, four values (2, *shape) and weights (2, 3)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)
    rows = rows * (torch.rand(rows.shape, generator=generator) > 0.2)
    if last and len(shape) == 3:
        rows = rows.movedim(2, -1).contiguous().movedim(-1, 2)
    values = torch.randn(4, 2, *shape, generator=generator, dtype=torch.float64).unbind()
    return rows, values, torch.randn(2, 3, generator=generator, dtype=torch.float64)


def over_images(value, rows):
    """View (B, *shape) so that it broadcasts over functions."""
    assert value.shape == (rows.shape[0], *rows.shape[2:])
    return value.unsqueeze(1)


def test_a_relaxation_worked_by_hand():
    """z in [-1, 3], slopes 1 below and 3/4 above, offset 3/4: 2 stays 2, and -2 becomes -3/2 and gains -3/2."""
    ones = torch.ones(1, 1)
    rows, gain = relaxed(torch.tensor([[[2.0], [-2.0]]]), ones, 0.75 * ones, 0.75 * ones)
    assert rows.tolist() == [[[2.0], [-1.5]]]
    assert gain.tolist() == [[0.0, -1.5]]


def test_a_minimum_worked_by_hand():
    """2a - 3b with a in [0, 2], b in [4, 5] is lowest at (0, 5)."""
    found = minima(torch.tensor([[[2.0, -3.0]]]), torch.tensor([[1.0, 4.5]]), torch.tensor([[2.0, 1.0]]))
    assert found.tolist() == [[-15.0]]


@shapes
@layouts
@settings(max_examples=25)
@given(seed=seeds)
def test_sums_are_what_they_say_in_any_layout(shape, last, seed):
    rows, (value, width, *_), weights = coefficients(seed, shape, last=last)
    sums = (rows * over_images(value, rows)).flatten(2).sum(2)
    torch.testing.assert_close(products(rows, value), sums)
    wide = weights.view(2, 3, *[1] * len(shape))
    torch.testing.assert_close(combinations(weights, rows), (rows * wide).sum(1))
    radius = (rows.abs() * over_images(width.abs(), rows)).flatten(2).sum(2) / 2
    torch.testing.assert_close(minima(rows, value, width.abs()), sums - radius)


@shapes
@layouts
@settings(max_examples=25)
@given(seed=seeds)
def test_gradients_equal_those_of_autograd(shape, last, seed):
    """Of the plain formulas: coefficients of exactly 0 are relaxed as positive ones and have no sign in a box."""
    rows, (a, b, c, d), weights = coefficients(seed, shape, last=last)
    leaves = [tensor.requires_grad_() for tensor in (rows, a, b.abs())]
    plain = (rows * over_images(leaves[1], rows) - rows.abs() * over_images(leaves[2], rows) / 2).flatten(2).sum(2)
    for ours, theirs in zip(
        torch.autograd.grad(minima(*leaves), leaves, weights), torch.autograd.grad(plain, leaves, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    above, offset = c.requires_grad_(), d.requires_grad_()
    negative = rows * (rows < 0)  # versions of torch differ in the gradient of a clamp at its bound
    carried = rows * over_images(a.detach(), rows) + negative * over_images(above - a.detach(), rows)
    expected = carried, (negative * over_images(offset, rows)).flatten(2).sum(2)
    found = relaxed(rows, a.detach(), above, offset)
    loss = [(out[0] * out[0].detach().sin()).sum() + (out[1] * weights).sum() for out in (found, expected)]
    leaves = [rows, above, offset]
    for ours, theirs in zip(*(torch.autograd.grad(value, leaves) for value in loss), strict=True):
        torch.testing.assert_close(ours, theirs)


@shapes
@layouts
@settings(max_examples=25)
@given(seed=seeds)
def test_written_over_is_the_same(shape, last, seed):
    rows, (below, above, offset, _), _ = coefficients(seed, shape, last=last)
    rows[0, 0] = torch.nan
    expected, gain = relaxed(rows, below, above, offset)
    torch.testing.assert_close(relax_(rows, below, above, offset), gain, equal_nan=True)
    assert torch.equal(rows.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_nan_coefficients_stay_nan():
    rows, ones = torch.tensor([[[torch.nan, 1.0]]]), torch.ones(1, 2)
    carried, gain = relaxed(rows, ones, ones, ones)
    assert carried.isnan().tolist() == [[[True, False]]]
    assert gain.isnan().all()
    assert minima(rows, ones, ones).isnan().all()


@shapes
@layouts
@pytest.mark.parametrize("count", [0, 1, 2])
def test_blocks_of_images_change_no_bit_of_a_relaxation_or_its_gradients(shape, last, count, monkeypatch):
    rows, values, weights = (part for part in coefficients(3, shape, last=last))
    below, above, offset = (value[:count].abs() for value in values[:3])

    def everything():
        given = [tensor.detach().clone().requires_grad_() for tensor in (rows[:count], above, offset)]
        found, gain = relaxed(given[0], below, given[1], given[2])
        total = (found * rows[:count].cos()).sum() + (gain * weights[:count]).sum()
        return [found, gain, *torch.autograd.grad(total, given)]

    whole = everything()
    monkeypatch.setattr(room, "BLOCK", 1)  # one image at a time
    for one, other in zip(whole, everything(), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
