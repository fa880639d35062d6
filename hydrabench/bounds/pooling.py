"""CROWN's rules for pooling: averages are linear, the maximum of a window lies between two lines.

Both lines of a maximum follow a single value of its window, so that a row of coefficients grows by no
more than the image does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.interval import Interval, Place
from hydrabench.bounds.operations import AdaptiveAveragePool, AveragePool, MaxPool


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines around the maximum of every window, all of shape (B, C, windows).

    below: number of the value in its window that the line below follows, with slope 1. above: of the value z
    that the line above, slope · z + offset, follows.
    """

    below: Tensor
    above: Tensor
    slope: Tensor
    offset: Tensor


def max_lines(operation: MaxPool, box: Interval) -> Lines:
    """Bound max(z_1, ..., z_n) for every window, over z in a box.

    With z the value of the largest upper bound u, l its lower bound and r the largest upper bound of the
    others, max(z, r) lies above the maximum. It is z itself if r <= l; else the chord from (l, r) to (u, u)
    lies above it, which touches the constant max u, the usual choice, in a single point. Below, any value of
    the window will do: z if none has a larger lower bound, so that both lines meet where z is the maximum
    for certain; else the one with the largest lower bound.
    """
    lower, upper = windows(operation, box.lower()), windows(operation, box.upper())
    highest, above = upper.max(2)
    rest = upper.scatter(2, above.unsqueeze(2), -torch.inf).amax(2)
    floor = lower.gather(2, above.unsqueeze(2)).squeeze(2)
    largest_lower, below = lower.max(2)
    contested = rest > floor
    slope = torch.where(contested, (highest - rest) / torch.where(contested, highest - floor, 1), 1)
    offset = torch.maximum(rest, floor) - slope * floor
    return Lines(torch.where(floor >= largest_lower, above, below), above, slope, offset)


def windows(operation: MaxPool, value: Tensor) -> Tensor:
    """The values of every window, -inf for padding: (B, C, values, windows)."""
    (top, left), kernel = operation.padding, operation.kernel
    padded = F.pad(value, (left, left, top, top), value=-torch.inf)
    columns = F.unfold(padded, kernel, operation.dilation, 0, operation.stride)
    return columns.view(*value.shape[:2], kernel[0] * kernel[1], -1)


def _positions(operation: MaxPool, numbers: Tensor, shape: torch.Size, across: int) -> Tensor:
    """Where values that are numbered within their windows, (B, C, windows), stand in an image (H, W), flattened.

    Args:
        shape: of the image, (B, C, H, W). across: how many windows stand side by side.
    """
    window = torch.arange(numbers.shape[-1], device=numbers.device)
    row, column = (
        (first * stride + inside * dilation - padding).clamp(0, size - 1)  # outside only if a window is all padding
        for first, inside, stride, dilation, padding, size in (
            (window // across, numbers // operation.kernel[1], *_along(operation, 0), shape[2]),
            (window % across, numbers % operation.kernel[1], *_along(operation, 1), shape[3]),
        )
    )
    return row * shape[3] + column


def _along(operation: MaxPool, axis: int) -> tuple[int, int, int]:
    return operation.stride[axis], operation.dilation[axis], operation.padding[axis]


def max_pool(operation: MaxPool, rows: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Send a positive coefficient to the value below the maximum, a negative one to the value above it."""
    assert place.box is not None, "propagate(keep=True) remembers the bounds before every max pooling"
    return along(operation, rows, max_lines(operation, place.box), place.shape)


def along(operation: MaxPool, rows: Tensor, lines: Lines, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Send coefficients along the lines around every maximum, to images of `shape`."""
    flat = rows.flatten(3)
    negative = flat.clamp(max=0)
    gain = torch.bmm(negative.flatten(2), lines.offset.flatten(1).unsqueeze(2)).squeeze(2)
    image = rows.new_zeros(*rows.shape[:3], shape[2] * shape[3])
    for numbers, coefficients in (
        (lines.below, flat.clamp(min=0)),
        (lines.above, negative * lines.slope.unsqueeze(1)),
    ):
        positions = _positions(operation, numbers, shape, rows.shape[-1])
        image = image.scatter_add_(3, positions.unsqueeze(1).expand_as(flat), coefficients)
    return image.view(*rows.shape[:2], *shape[1:]), gain


def average_pool(operation: AveragePool, rows: Tensor, place: Place) -> tuple[Tensor, None]:
    """Spread a coefficient evenly over its window."""
    shape = torch.Size((rows.shape[0] * rows.shape[1], *place.shape[1:]))
    images = torch.ops.aten.avg_pool2d_backward(
        rows.flatten(0, 1),
        rows.new_empty(1).expand(shape),  # only the shape of what was pooled matters
        operation.kernel,
        operation.stride,
        operation.padding,
        False,  # ceil_mode
        operation.count_padding,
        None,  # divisor_override
    )
    return images.view(*rows.shape[:2], *place.shape[1:]), None


def adaptive_pool(_operation: AdaptiveAveragePool, rows: Tensor, place: Place) -> tuple[Tensor, None]:
    """Spread a coefficient evenly over its window, a rectangle: along one axis and then along the other."""
    tall, wide = (
        F.adaptive_avg_pool1d(torch.eye(before, dtype=rows.dtype, device=rows.device), after)
        for before, after in zip(place.shape[-2:], rows.shape[-2:], strict=True)
    )
    return tall @ rows @ wide.T, None
