"""Pooling: averages are linear, the maximum of a window lies between two lines.

Both lines of a maximum follow a single value of its window, so that a row of coefficients grows by no
more than the image does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.box import images
from hydrabench.bounds.outward import MORE, TINY, growth, up
from hydrabench.bounds.patches import Pair
from hydrabench.bounds.program.operations import Linear, Relaxed
from hydrabench.bounds.relaxations import Picked

TIE = 1e-6  # lower bounds of a window this close, relative to the width of its strongest value, count as equal


@dataclass(frozen=True, eq=False)
class AveragePool(Linear):
    """Mean of every window, in which padding counts as zeros if `count_padding` and is left out otherwise."""

    aliases: ClassVar[bool] = False
    kernel: Pair
    stride: Pair
    padding: Pair
    count_padding: bool
    ceil_mode: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """Pool images (B, C, H, W)."""
        return F.avg_pool2d(
            images(x, "avg_pool2d"), self.kernel, self.stride, self.padding, self.ceil_mode, self.count_padding
        )

    def absolute(self) -> AveragePool:
        """No weight is negative."""
        return self

    def terms(self, _before: Sequence[torch.Size], _after: torch.Size) -> tuple[int, int]:
        """See `Linear`; twice, because each term may be multiplied."""
        return 2 * self.kernel[0] * self.kernel[1] + MORE, 0

    def back(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor]:
        """Spread a coefficient evenly over its window."""
        images = torch.ops.aten.avg_pool2d_backward(
            rows,
            rows.new_empty(1).expand(len(rows), *shapes[0][1:]),  # only the shape of what was pooled matters
            self.kernel,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_padding,
            None,  # divisor_override
        )
        return (images,)

    def known_channels(self, channels: Tensor) -> Tensor:
        """Zeros stay zeros; of other constants padding may count."""
        return channels.masked_fill(channels != 0, torch.nan)


@dataclass(frozen=True, eq=False)
class AdaptiveAveragePool(Linear):
    """Means of as many windows as `size` says, which cover the image evenly; None keeps the size of an axis."""

    aliases: ClassVar[bool] = False
    size: tuple[int | None, int | None]

    def apply(self, x: Tensor) -> Tensor:
        """Pool images (B, C, H, W)."""
        return F.adaptive_avg_pool2d(images(x, "adaptive_avg_pool2d"), self.size)  # type: ignore[arg-type]

    def absolute(self) -> AdaptiveAveragePool:
        """No weight is negative."""
        return self

    def terms(self, before: Sequence[torch.Size], _after: torch.Size) -> tuple[int, int]:
        """See `Linear`; twice, because each term may be multiplied."""
        return 2 * before[0][-2:].numel() + MORE, 0

    def back(self, rows: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor]:
        """Spread a coefficient evenly over its window, a rectangle: along one axis and then along the other."""
        tall, wide = (
            F.adaptive_avg_pool1d(torch.eye(before, dtype=rows.dtype, device=rows.device), after)
            for before, after in zip(shapes[0][-2:], rows.shape[-2:], strict=True)
        )
        return (tall @ rows @ wide.T,)

    def known_channels(self, channels: Tensor) -> Tensor:
        """Zeros stay zeros."""
        return channels.masked_fill(channels != 0, torch.nan)


@dataclass(frozen=True, eq=False)
class MaxPool(Relaxed):
    """Largest value of every window; padding never wins."""

    ulps: ClassVar[float] = 0
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """Pool images (B, C, H, W)."""
        return F.max_pool2d(
            images(x, "max_pool2d"), self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def box(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """A maximum rises with what it is of."""
        return self.apply(lower), self.apply(upper)

    def lines(self, lower: Tensor, upper: Tensor) -> Picked:
        """Bound max(z_1, ..., z_n) for every window, over z in a box.

        With z the value of the largest upper bound u, l its lower bound and r the largest upper bound of the
        others, max(z, r) lies above the maximum. It is z itself if r <= l; else the chord from (l, r) to (u, u)
        lies above it, which touches the constant max u, the usual choice, in a single point. Below, any value of
        the window will do: z if none has a larger lower bound, so that both lines meet where z is the maximum
        for certain; else the one with the largest lower bound. Behind a ReLU many lower bounds are 0, and `TIE` keeps
        rounding, outward or not, from choosing among them.
        """
        lows, highs = self.windows(lower), self.windows(upper)
        highest, above = highs.max(2)
        rest = highs.scatter(2, above.unsqueeze(2), -torch.inf).amax(2)
        floor = lows.gather(2, above.unsqueeze(2)).squeeze(2)
        largest_lower, below = lows.max(2)
        contested = rest > floor
        slope = torch.where(contested, (highest - rest) / torch.where(contested, highest - floor, 1), 1)
        offset = torch.maximum(rest, floor) - slope * floor
        certain = floor + TIE * (highest - floor) >= largest_lower
        return self._picked(torch.where(certain, above, below), above, slope, offset, lower.shape)

    def strip(self, lower: Tensor, upper: Tensor) -> Picked:
        """A strip of slope 1 along the value with the largest lower bound."""
        winners = self.strongest(lower)
        low = lower.flatten(2).gather(2, winners.flatten(2)).view_as(winners)
        offset = (self.rest_of_windows(lower, upper) - low).clamp(min=0)
        return Picked(None, offset, winners, winners, torch.ones_like(offset), prod(self.kernel))

    def rounded_lines(self, lower: Tensor, upper: Tensor) -> Picked:
        """`lines` with offsets for which they hold, whatever value they follow with which slope.

        Below any value of the window lies below its maximum. Above, with r no less than all others, s z + o - max(z, r)
        is concave in z, so it is positive if it is at both ends l and u of z: o >= max(l, r) - s l and
        o >= max(u, r) - s u.
        """
        lines = self.lines(lower, upper)
        slope, members = lines.slope.flatten(2).clamp(0, 1), self.members(lower)
        followed = members == lines.above.flatten(2).unsqueeze(2)
        ends = [corner.flatten(2).gather(2, lines.above.flatten(2)) for corner in (lower, upper)]
        rest = self.windows(upper).masked_fill(followed, -torch.inf).amax(2)
        offset = torch.maximum(*(up(torch.maximum(end, rest) + up(-slope * end)) for end in ends))
        offset = torch.where(slope == 1, offset, offset + TINY).view_as(lines.slope)
        return Picked(None, offset, lines.below, lines.above, slope.view_as(lines.slope), lines.window)

    def undecided(self, lower: Tensor, upper: Tensor) -> tuple[Tensor]:
        """Entries of windows without a certain winner."""
        members, highest = self.members(lower), self.rest_of_windows(lower, upper)
        open_ = ~(self.apply(lower) >= highest)
        hits = open_.flatten(2).unsqueeze(2) & (members >= 0)
        index = members.clamp(min=0).expand_as(hits)
        counts = torch.zeros_like(lower).flatten(2).scatter_add(2, index.flatten(2), hits.to(lower.dtype).flatten(2))
        return ((counts > 0).view_as(lower),)

    def carried_error(self, _corners: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
        """The largest error of a window."""
        return self.apply(errors[0])

    def rounding_error(self, _corners: Sequence[Tensor], sizes: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
        """See `Relaxed`."""
        largest = self.apply(sizes[0])
        return self.apply(errors[0]) + growth(MORE + largest[0].numel(), largest.dtype) * 4 * largest

    def widest(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Lines follow any value; a strip is as high as the largest lower bound lies below the largest upper one."""
        highest = self.apply(upper)
        return -self.apply(-lower), 2 * highest - self.apply(lower)

    def size(self, lower: Tensor, upper: Tensor) -> Tensor:
        """See `Relaxed`."""
        return self.apply(torch.maximum(lower.abs(), upper.abs()))

    def known_channels(self, channels: Tensor) -> Tensor:
        """A constant stays; a window with dilation may be all padding."""
        return channels if self.dilation == (1, 1) else torch.full_like(channels, torch.nan)

    # Windows -----------------------------------------------------------------------------------

    def windows(self, value: Tensor) -> Tensor:
        """The values of every window, -inf for padding: (B, C, values, windows)."""
        members = self.members(value)
        shape = (*value.shape[:2], *members.shape[2:])
        found = value.flatten(2).gather(2, members.clamp(min=0).flatten(2).expand(*value.shape[:2], -1)).view(shape)
        return found.masked_fill(members < 0, -torch.inf)

    def members(self, value: Tensor) -> Tensor:
        """Return which entries of a flattened image lie in each window; -1 for padding: (1, 1, entries, windows)."""
        height, width = value.shape[2:]
        numbers = torch.arange(1, height * width + 1, device=value.device, dtype=torch.float64)
        numbers = F.pad(numbers.view(1, 1, height, width), (*self._pads(width, 1), *self._pads(height, 0)))
        columns = F.unfold(numbers, self.kernel, self.dilation, 0, self.stride)
        return columns.long().unsqueeze(1) - 1

    def rest_of_windows(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Largest upper bound in every window but for the entry with the largest lower bound: (B, C, windows...)."""
        winners = self.strongest(lower)
        columns = self.windows(upper).masked_fill(self.members(upper) == winners.flatten(2).unsqueeze(2), -torch.inf)
        return columns.amax(2).view_as(winners)

    def strongest(self, lower: Tensor) -> Tensor:
        """Return the place in the flattened image (H, W) of the entry of every window with the largest lower bound."""
        _, places = F.max_pool2d(
            lower, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode, return_indices=True
        )
        return places

    def _pads(self, size: int, axis: int) -> Pair:
        """Padding before and after; with `ceil_mode` as much more as its last window needs."""
        before, span = self.padding[axis], self.dilation[axis] * (self.kernel[axis] - 1) + 1
        step, rest = self.stride[axis], size + 2 * before - span
        count = rest // step + 1
        if self.ceil_mode and rest % step and count * step < size + before:  # a window starts inside, or left of it
            count += 1
        return before, max(before, (count - 1) * step + span - size - before)

    def _picked(self, below: Tensor, above: Tensor, slope: Tensor, offset: Tensor, shape: torch.Size) -> Picked:
        """Lines whose values are given by their numbers within the windows, (B, C, windows)."""
        members = self.members(slope.new_empty(1).expand(shape)).expand(*shape[:2], -1, -1)
        grid = self.apply(slope.new_empty(1).expand(1, 1, *shape[2:])).shape[2:]
        places = [members.gather(2, numbers.unsqueeze(2)).squeeze(2).clamp(min=0) for numbers in (below, above)]
        at_below, at_above, slope, offset = (part.view(*shape[:2], *grid) for part in (*places, slope, offset))
        return Picked(None, offset, at_below, at_above, slope, prod(self.kernel))
