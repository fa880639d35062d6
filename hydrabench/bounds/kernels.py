"""Kernels for the coefficients of a pass backward, its largest tensors: as few sweeps over them as possible.

Autograd would keep a mask, a sign and a product of the size of the coefficients for every step and sweep over each; the
gradients below come from the coefficients themselves. Coefficients are (B, S, *value) for values (B, *value), in any
layout; images with channels last are flattened in the order of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**21  # bytes of coefficients that a CPU takes at once: they stay in its cache for several sweeps


def products(rows: Tensor, value: Tensor) -> Tensor:
    """Inner product of every function of an image and a value of its own: (B, S, *value) and (B, *value) to (B, S)."""
    if _channels_last(rows):
        rows, value = rows.movedim(2, -1), value.movedim(1, -1)
    # As a row times a matrix: MKL takes eight times as long for a matrix times a column.
    return torch.bmm(value.flatten(1).unsqueeze(1), rows.flatten(2).transpose(1, 2)).squeeze(1)


def combinations(weights: Tensor, rows: Tensor) -> Tensor:
    """Sum of the functions of each image times `weights`: (B, S) and (B, S, *value) to (B, *value)."""
    if _channels_last(rows):
        return _combined(weights, rows.movedim(2, -1)).movedim(-1, 1)
    return _combined(weights, rows)


def minima(rows: Tensor, center: Tensor, width: Tensor) -> Tensor:
    """Smallest values of linear functions over boxes: (B, S, *value), (B, *value) twice, to (B, S)."""
    found: Tensor = _Minima.apply(rows, center, width)
    return found


def relaxed(rows: Tensor, below: Tensor, above: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of max(z, 0) as ones of z: negative ones times `above`, the others times `below`.

    Args:
        rows: (B, S, *value). below: slopes of lines through 0; above, offset: slopes and offsets of lines above; all
            (B, *value).
    Returns: coefficients of z; what the constants gain from the offsets, (B, S).
    """
    found: tuple[Tensor, Tensor] = _Relaxed.apply(rows, below, above, offset)
    return found


def relax_(rows: Tensor, below: Tensor, above: Tensor, offset: Tensor) -> Tensor:
    """The same as `relaxed` without gradients, written over `rows`; returns what the constants gain, (B, S)."""
    negative = rows.clamp(max=0)
    rows.mul_(below.unsqueeze(1)).addcmul_(negative, (above - below).unsqueeze(1))
    return products(negative, offset)


def blocks(rows: Tensor) -> Iterator[slice]:
    """Cut (B, ...) between images, for sweeps over parts of `BLOCK` bytes on a CPU."""
    most = max(1, BLOCK // max(1, rows[:1].numel() * rows.element_size())) if rows.device.type == "cpu" else len(rows)
    return (slice(start, start + most) for start in range(0, len(rows), most))


class _Minima(torch.autograd.Function):
    """The minimum of a function over a box: rows · center - |rows| · width / 2."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, center: Tensor, width: Tensor) -> Tensor:
        """See `minima`."""
        ctx.save_for_backward(rows, center, width)
        return products(rows, center).sub_(products(rows.abs(), width), alpha=0.5)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `rows`, `center` and `width` from those of the minima, (B, S).

        That of a function is the corner at which it is smallest; those of center and width are sums of functions.
        """
        rows, center, width = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_rows = None
        if wanted[0]:
            corners = rows.sign().mul_(width.unsqueeze(1) * -0.5).add_(center.unsqueeze(1))
            of_rows = corners.mul_(_wide(weights, rows))
        of_center = combinations(weights, rows) if wanted[1] else None
        of_width = combinations(weights, rows.abs()).mul_(-0.5) if wanted[2] else None
        return of_rows, of_center, of_width


class _Relaxed(torch.autograd.Function):
    """Coefficients through the lines around max(z, 0): max(rows, 0) below + min(rows, 0) above, and the offsets."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, below: Tensor, above: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """See `relaxed`."""
        ctx.save_for_backward(rows, below, above, offset)
        found, gains = torch.empty_like(rows), rows.new_empty(rows.shape[:2])
        for part in blocks(rows):
            gains[part] = relax_(found[part].copy_(rows[part]), below[part], above[part], offset[part])
        return found, gains

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, weights: Tensor, gained: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the four arguments from those of the coefficients, (B, S, *value), and the constants, (B, S).

        That of a coefficient is the slope of its line times the given one, plus the offset if it is negative; those of
        the lines are sums over the functions of an image.
        """
        rows, below, above, offset = ctx.saved_tensors
        of_rows, of_above, of_offset = torch.empty_like(rows), torch.empty_like(above), torch.empty_like(offset)
        of_below = torch.empty_like(below) if ctx.needs_input_grad[1] else None
        for part in blocks(rows):
            here, given, gain = rows[part], weights[part], gained[part]
            steeper = (above[part] - below[part]).unsqueeze(1)
            of_here = torch.mul(given, steeper, out=of_rows[part])
            of_here.addcmul_(_wide(gain, here), offset[part].unsqueeze(1))
            of_here.mul_(here < 0).addcmul_(given, below[part].unsqueeze(1))
            negative = here.clamp(max=0)
            of_offset[part] = combinations(gain, negative)
            of_above[part] = negative.mul_(given).sum(1)
            if of_below is not None:
                of_below[part] = here.clamp(min=0).mul_(given).sum(1)
        return of_rows, of_below, of_above, of_offset


def _channels_last(rows: Tensor) -> bool:
    return rows.ndim == 5 and rows.stride(2) == 1


def _combined(weights: Tensor, rows: Tensor) -> Tensor:
    return torch.bmm(weights.unsqueeze(1), rows.flatten(2)).view(rows[:, 0].shape)


def _wide(numbers: Tensor, rows: Tensor) -> Tensor:
    """View (B, S) so that it broadcasts over coefficients."""
    return numbers.view(*numbers.shape, *[1] * (rows.ndim - 2))
