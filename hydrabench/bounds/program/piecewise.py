"""Elementwise functions that are convex, concave or linear between a few knots: their boxes and lines from the pieces.

Every activation of `activations` and `gated` is one of these. What a function has to say is where its knots lie, which
pieces are curved and how, and where a line of a given slope touches such a piece. Lines around it on [l, u] follow:

    slope z + min (f(z) - slope z)  <=  f(z)  <=  slope z + max (f(z) - slope z),    both over z in [l, u],

for any slope whatever, so that slopes are a matter of tightness only.
Source: Zhang et al. (2018), arXiv:1811.00866, for the lines; the tangent argument is in `Piecewise.extremes`.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hydrabench.bounds.program.operations import Elementwise
from hydrabench.bounds.relaxations import Sloped

FAR = 48.0  # smooth functions are their limits there, but for 1e-19
ENTRIES, REACH = 2048, 1e4  # of a table of tangent points, and how far from its piece the last one's tangent leads


@dataclass(frozen=True)
class Curve:
    """A piece on which f is strictly convex or concave.

    Attributes:
        piece: its number; piece 0 ends at the first knot.
        bend: 1 if f is convex there, -1 if concave.
        derivative: f' on the piece, at its ends the limit from inside.
        touch: from slopes, about where f' takes them, on the piece or beyond the end that is nearer to taking them.
    """

    piece: int
    bend: int
    derivative: Callable[[Tensor], Tensor]
    touch: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """The points where a function bends, and its slopes.

    Attributes:
        knots: the ends of its pieces, ascending.
        curves: the pieces that are not linear.
        kinked: whether f' jumps at the knots; if not, they only separate convex from concave.
        tangents: whether a line through an end of an interval may touch a curved piece that the end is not on and bound
            f; never so if f is convex or concave as a whole.
        turning: where f changes from falling to rising or back.
    """

    knots: tuple[float, ...]
    curves: tuple[Curve, ...] = ()
    kinked: bool = True
    tangents: bool = False
    turning: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Piecewise(Elementwise, ABC):
    """A continuous function made of convex, concave and linear pieces."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """The bends of the function."""

    @property
    def kinks(self) -> tuple[float, ...]:  # type: ignore[override]
        """The knots where f' jumps."""
        return self.shape.knots if self.shape.kinked else ()

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """Return f'(x), at a kink that of the piece on its left."""

    def steepest(self, _lower: Tensor, _upper: Tensor) -> float | Tensor:
        """Return a bound of |f'| on [lower, upper]."""
        return self.steepness

    def value(self, x: Tensor) -> Tensor:
        """Return f(x), which is continuous, and its limit where x is infinite."""
        return self.apply(x)

    def box(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest f(z) for z in [lower, upper], but for the rounding of f.

        f rises or falls from one turning point to the next. A turning point rounded by eps t moves the extreme by
        f''(t) (eps t)^2 / 2, which is far less.
        """
        if not self.shape.turning:
            return self.value(lower), self.value(upper)
        values = [self.value(point) for point in (lower, *_inside(self.shape.turning, lower, upper), upper)]
        return _least(values), _most(values)

    def extremes(self, slope: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest g(z) = f(z) - slope z for z in [lower, upper], for any slope.

        On a linear piece both lie at its ends, on a convex one the largest does. The smallest lies where f' = slope.
        Let t be near that point, on the piece [a, b]. A convex g lies above its tangent at t, so that

            g(z)  >=  g(t) + g'(t) (z - t)  >=  g(t) + min(g'(t) (a - t), g'(t) (b - t)).

        This holds for every t, so nothing depends on how well t was found; the last term is what that costs. Concave
        pieces are the same upside down. A knot rounded by d = eps |knot| bends a piece the wrong way on a stretch of
        length d, by f'''(knot) d^3 at most, which is far below any rounding.

        Derivatives with respect to `slope` are -z for the z that attains the extreme (envelope theorem).

        Args:
            slope: (..., B, ...), broadcast against the other two.
            lower, upper: (B, ...), lower <= upper. Where one of them is infinite or NaN and the slope is not 0, the
                result is -inf and inf; NaN never comes out.
        Returns: off the exact extremes by `rounding` at most.
        """
        ends = finite(lower), finite(upper)
        points = [ends[0], *_inside(self.shape.knots, *ends), ends[1]]
        values = [self.value(point) - slope * point for point in points]
        low, high = _least(values), _most(values)
        for curve in self.shape.curves:
            low, high = self._touched(curve, slope, points[curve.piece : curve.piece + 2], low, high)
        vast = ~(lower.isfinite() & upper.isfinite())
        if vast.any():
            least, most = self.box(lower, upper)
            low = torch.where(vast, torch.where(slope == 0, least, -torch.inf), low)
            high = torch.where(vast, torch.where(slope == 0, most, torch.inf), high)
        return _without_nan(low, -torch.inf), _without_nan(high, torch.inf)

    def _touched(
        self, curve: Curve, slope: Tensor, ends: Sequence[Tensor], low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the extremes, from those of the ends, with those inside of a curved piece between two ends.

        A line touches it there only if f' passes the slope; else g rises, or falls, on all of it.
        """
        with torch.no_grad():
            start, end = (curve.bend * (curve.derivative(point) - slope) for point in ends)
            inside = (start < 0) & (end > 0)
        if not inside.any():
            return low, high
        start, end, slope = (part.expand(inside.shape)[inside] for part in (*ends, slope))
        with torch.no_grad():
            t = torch.minimum(torch.maximum(curve.touch(slope), start), end)
            rise = curve.bend * (curve.derivative(t) - slope)
            missing = torch.minimum(rise * (start - t), rise * (end - t)).clamp(max=0)
        found = self.value(t) - slope * t + curve.bend * missing
        if curve.bend > 0:
            return low.masked_scatter(inside, torch.minimum(low[inside], found)), high
        return low, high.masked_scatter(inside, torch.maximum(high[inside], found))

    def rounding(self, slope: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Return how far off `extremes` may be. With Z the largest |z| and L the largest |f'|,

            eps ((ulps + 2) size + 32 (L + |slope|) Z) + 32 tiny.

        What is computed for f(z) is off by ulps eps `size`, and size >= |f(z)|. The derivative g'(t) is within
        8 eps of (L + |slope|), and is multiplied by at most 2 Z. The products and sums around it add less than
        8 eps (L + |slope|) Z, and a sum with this bound no more than |f(z)| + |slope| Z, times eps. Where g only
        seems to be monotone on a curved piece, because g' at its ends is rounded, that costs no more either.
        """
        kind = torch.finfo(lower.dtype)
        reach = torch.maximum(lower.abs(), upper.abs())
        products = 32 * (self.steepest(lower, upper) + slope.abs()) * reach
        return kind.eps * ((self.ulps + 2) * self.size(lower, upper) + products) + 32 * kind.tiny

    def rounded_lines(self, lower: Tensor, upper: Tensor) -> Sloped:
        """Return `lines`, moved apart by `rounding`."""
        below, above = self.slopes(lower, upper)
        low = self.extremes(below, lower, upper)[0] - self.rounding(below, lower, upper)
        high = self.extremes(above, lower, upper)[1] + self.rounding(above, lower, upper)
        return Sloped(low, high, (below,), (above,))

    def rounding_error(self, corners: Sequence[Tensor], sizes: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
        """See `Relaxed`; the constants of lines, no steeper than f, are off by `rounding` more."""
        steepest = torch.as_tensor(self.steepest(*corners), dtype=corners[0].dtype, device=corners[0].device)
        return super().rounding_error(corners, sizes, errors) + self.rounding(steepest, *corners)

    def decided(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return where f is exactly linear on [lower, upper]: it lies in a piece that is not curved."""
        found = torch.zeros_like(lower, dtype=torch.bool)
        curved = {curve.piece for curve in self.shape.curves}
        for piece, (start, end) in enumerate(
            zip((-torch.inf, *self.shape.knots), (*self.shape.knots, torch.inf), strict=True)
        ):
            if piece not in curved:
                found = found | ((lower >= start) & (upper <= end))
        return found

    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the slope of the line through (l, f(l)) and (u, f(u)), that of a tangent where l = u."""
        lower, upper = finite(lower), finite(upper)
        same = ~(upper > lower)
        slope = (self.value(upper) - self.value(lower)) / (upper - lower).masked_fill(same, 1)
        slope = slope.clamp(-self.steepness, self.steepness)  # rounding makes anything of a tiny difference
        return torch.where(same, self.derivative(upper), slope).nan_to_num(nan=0.0)

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slopes of the lines below and above f on [lower, upper] that enclose the smallest areas.

        The area between f and a line below it falls as the line rises at the middle m of the interval. The highest such
        line supports the convex hull of f there: it is the tangent at m, or an edge between two points of f with m
        between them. Every edge lies above the hull at m, so the lowest one is the right one. Edges to look at are
        those between ends, kinks, and points where a line through an end touches a curved piece. For a ReLU this is
        CROWN's adaptive slope, for an S-shaped function the tangent at m or the one through an end.
        """
        lower, upper = finite(lower), finite(upper)
        middle = torch.lerp(lower, upper, 0.5)
        below = above = self.derivative(middle)
        low = high = self.value(middle)
        for start, end in self._edges(lower, upper):
            slope = self.chord(start, end)
            height = self.value(start) + slope * (middle - start)
            holds = (start <= middle) & (middle <= end)
            below, low = (torch.where(holds & (height < low), *pair) for pair in ((slope, below), (height, low)))
            # At a concave kink behind a convex piece f' is too steep, and the edge up to the kink is as high.
            above, high = (torch.where(holds & (height >= high), *pair) for pair in ((slope, above), (height, high)))
        linear, slope = self.decided(lower, upper), self.derivative(upper)
        below, above = (torch.where(linear, slope, side).nan_to_num(nan=0.0) for side in (below, above))
        return below, above

    def _edges(self, lower: Tensor, upper: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return pairs of points between which an edge of a hull may lie; pieces that are linear are edges anyway."""
        shape, points = self.shape, [lower, *_inside(self.shape.knots, lower, upper), upper]
        last, curved = len(points) - 2, {curve.piece for curve in shape.curves}
        found = [(lower, upper)]
        for number, point in enumerate(points[1:-1] if shape.kinked else (), start=1):
            found += [(lower, point)] if number > 1 or 0 in curved else []
            found += [(point, upper)] if number < last or last in curved else []
        for curve in shape.curves if shape.tangents else ():
            start, end = points[curve.piece : curve.piece + 2]
            if curve.piece < last:
                found.append((self.tangent_point(curve, 1, upper).clamp(start, end), upper))
            if curve.piece > 0:
                found.append((lower, self.tangent_point(curve, -1, lower).clamp(start, end)))
        return found

    @torch.no_grad()
    def tangent_point(self, curve: Curve, side: int, through: Tensor) -> Tensor:
        """Return t, near a curved piece, so that the tangent there passes (through, f(through)), from a table.

        Args: side: 1 if `through` lies behind the piece, -1 if before it.
        """
        settings = tuple(vars(self).values())
        table = _tangent_points(type(self), settings, curve.piece, side).to(through)
        end = (-torch.inf, *self.shape.knots, torch.inf)[curve.piece + (side > 0)]
        place = (side * (through - end)).clamp(0, REACH).asinh() * ((ENTRIES - 1) / math.asinh(REACH))
        place = place.nan_to_num(nan=0.0)
        before = place.long().clamp(max=ENTRIES - 2)
        return torch.lerp(table[before], table[before + 1], place - before)


@functools.lru_cache(maxsize=64)
def _tangent_points(kind: type[Piecewise], settings: tuple[float, ...], piece: int, side: int) -> Tensor:
    """Return the tangent points of `Piecewise.tangent_point` for ends at distances sinh(x) from the piece, x even.

    The tangent at t cuts f between t and the end if t is too close to the end. Where none passes the end, the place is
    that of the piece from which it comes nearest.
    """
    function = kind(*settings)
    curve = next(curve for curve in function.shape.curves if curve.piece == piece)
    ends = (-FAR, *function.shape.knots, FAR)[piece : piece + 2]
    near, away = ends[::-1] if side > 0 else ends
    through = near + side * torch.linspace(0, math.asinh(REACH), ENTRIES, dtype=torch.float64).sinh()
    close, far = torch.full_like(through, near), torch.full_like(through, away)
    height = function.value(through)
    for _ in range(60):
        t = torch.lerp(close, far, 0.5)
        cuts = curve.bend * (function.value(t) + curve.derivative(t) * (through - t) - height) > 0
        close, far = torch.where(cuts, t, close), torch.where(cuts, far, t)
    return torch.lerp(close, far, 0.5)


def finite(x: Tensor) -> Tensor:
    """Return x with its infinities replaced by the largest numbers of the type."""
    kind = torch.finfo(x.dtype)
    return x.clamp(kind.min, kind.max)


def _without_nan(x: Tensor, instead: float) -> Tensor:
    return x.nan_to_num(nan=instead, posinf=torch.inf, neginf=-torch.inf)


def _inside(points: Sequence[float], lower: Tensor, upper: Tensor) -> list[Tensor]:
    """The points, each moved to the nearest place in [lower, upper]."""
    return [torch.minimum(lower.clamp(min=point), upper) for point in points]


def _least(values: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.minimum, values)


def _most(values: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.maximum, values)
