"""The rectifier max(z, 0), and the lines around it, whose numbers all methods share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hydrabench.bounds.box import Interval
from hydrabench.bounds.outward import MORE, TINY, growth, up
from hydrabench.bounds.program.operations import Elementwise
from hydrabench.bounds.relaxations import Sloped

GUARD = 1e-8  # keeps the slope of a neuron with l = u = 0 finite


def relaxation(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lines around max(z, 0) for z in [lower, upper].

    Returns: slope of the line below, which passes through 0; slope and offset of the line above. The
        slope below is adaptive: 1 where the slope above exceeds one half, otherwise 0.
    Source: Zhang et al. (2018), arXiv:1811.00866, section 3.3.
    """
    below = lower.clamp(max=0)
    above = torch.maximum(upper.clamp(min=0), below + GUARD)
    slope = above / (above - below)
    return (slope > 0.5).to(slope.dtype), slope, -below * slope


@dataclass(frozen=True, eq=False)
class Relu(Elementwise):
    """max(x, 0), element by element."""

    ulps: ClassVar[float] = 0
    misses: ClassVar[int] = 1
    kinks: ClassVar[tuple[float, ...]] = (0.0,)

    @property
    def steepness(self) -> float:
        """The slope of the positive half."""
        return 1.0

    def apply(self, x: Tensor) -> Tensor:
        """Rectify."""
        return x.relu()

    def box(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """It rises."""
        return lower.relu(), upper.relu()

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """See `relaxation`."""
        below, above, _ = relaxation(lower, upper)
        return below, above

    def extremes(self, slope: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """max(z, 0) - slope · z is convex: largest at an end, smallest at an end or at 0."""
        ends = lower.relu() - slope * lower, upper.relu() - slope * upper
        kink = torch.zeros_like(lower).clamp(lower, upper)
        smallest = torch.minimum(torch.minimum(*ends), kink.relu() - slope * kink)
        return smallest, torch.maximum(*ends)

    def decided(self, lower: Tensor, upper: Tensor) -> Tensor:
        """On or off for certain."""
        return (lower >= 0) | (upper <= 0)

    def interval(self, box: Interval, *, spent: bool = False) -> Interval:
        """The box of the result, without gradients in four sweeps over memory instead of six."""
        if torch.is_grad_enabled() and (box.center.requires_grad or box.width.requires_grad):
            return Interval.taking(box.lower().relu_(), box.upper().relu_())
        return rectified(box, in_place=spent)

    def lines(self, lower: Tensor, upper: Tensor) -> Sloped:
        """The line below passes through 0."""
        below, above, offset = relaxation(lower, upper)
        return Sloped(None, offset, (below,), (above,))

    def strip(self, lower: Tensor, upper: Tensor) -> Sloped:
        """The slope of the line above, u / (u - l), for both."""
        _, slope, offset = relaxation(lower, upper)
        return Sloped(None, offset, (slope,), (slope,))

    def rounded_lines(self, lower: Tensor, upper: Tensor) -> Sloped:
        """Lines around max(z, 0) for every exact z in [lower, upper].

        Any line through 0 with a slope in [0, 1] lies below. With s the rounded slope of the chord, s z + t - max(z, 0)
        is concave in z, so it is positive between the ends if it is at both: t >= -s l and t >= (1 - s) u, rounded up.
        """
        below, slope, _ = relaxation(lower, upper)
        on, off = lower >= 0, upper <= 0
        slope = slope.clamp(0, 1).masked_fill(on, 1).masked_fill(off, 0)
        offset = torch.maximum(up(-slope * lower), up(up(1 - slope) * upper)) + TINY
        below = below.masked_fill(on, 1).masked_fill(off, 0)
        return Sloped(None, offset.masked_fill(on | off, 0), (below,), (slope,))

    def rounding_error(self, corners: Sequence[Tensor], sizes: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
        """See `Relaxed`; only undecided neurons have offsets, and those that are off for certain pass nothing on."""
        (lower, upper), (size,), (error,) = corners, sizes, errors
        off, on = upper < -GUARD, lower > 0
        undecided = int((~(off | on)).flatten(1).sum(1).max())
        offset = relaxation(lower, upper)[2]
        found = error + growth(MORE, error.dtype) * size + growth(MORE + undecided, error.dtype) * offset
        return found.masked_fill(off, 0)

    def widest(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Within [l, u] if u > 0: no line above exceeds u there, and the one below may be z itself."""
        return lower.masked_fill(upper < -GUARD, 0), upper.clamp(min=0)


def rectified(box: Interval, *, in_place: bool) -> Interval:
    """The box behind a ReLU, without gradients.

    Of corners l <= u, max(u, 0) - max(l, 0) is the smaller one of max(u, 0) and u - l, whether l is above 0 or not.
    NaN stays NaN, and where the width is 0 the result is exactly max(u, 0).

    Args:
        in_place: write over the box.
    """
    upper = box.center.add_(box.width, alpha=0.5) if in_place else box.upper()
    width = torch.minimum(upper.relu_(), box.width, out=box.width if in_place else None)
    return Interval(upper.sub_(width, alpha=0.5), width)
