"""Activation functions made of linear pieces, and those that need a product only: hardswish and the square.

Each says where it bends; its box and its lines follow in `piecewise`. Settings are the numbers that torch's layers
take; `ulps` covers that they are rounded to the type of the values, too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.program.piecewise import Curve, Piecewise, Shape, finite
from hydrabench.bounds.program.relu import relaxation
from hydrabench.bounds.relaxations import Sloped

Number = float | Tensor


@dataclass(frozen=True, eq=False)
class PiecewiseLinear(Piecewise, ABC):
    """A continuous function that is linear between its knots."""

    ulps: ClassVar[float] = 1.0

    @property
    @abstractmethod
    def gradients(self) -> tuple[Number, ...]:
        """Its slopes, one for every piece; a tensor (C,) has one for every channel, axis 1."""

    @property
    def steepness(self) -> float:
        """The largest of them in size."""
        return max(float(torch.as_tensor(slope).detach().abs().max()) for slope in self.gradients)

    def derivative(self, x: Tensor) -> Tensor:
        """Return the slope at x, at a knot that on its left."""
        first, *rest = (
            slope.view(-1, *[1] * (x.ndim - 2)) if isinstance(slope, Tensor) else slope for slope in self.gradients
        )
        found = torch.zeros_like(x) + first
        for knot, slope in zip(self.shape.knots, rest, strict=True):
            found = torch.where(x > knot, slope, found)
        return found


@dataclass(frozen=True, eq=False)
class LeakyRelu(PiecewiseLinear):
    """x where x > 0, elsewhere slope · x; the slope may have any sign and size."""

    slope: float

    @property
    def shape(self) -> Shape:
        """A kink at 0."""
        return Shape(knots=(0.0,), turning=(0.0,) if self.slope < 0 else ())

    @property
    def gradients(self) -> tuple[Number, ...]:
        """The slope, and 1."""
        return self.slope, 1.0

    def apply(self, x: Tensor) -> Tensor:
        """Rectify."""
        return F.leaky_relu(x, self.slope)

    def lines(self, lower: Tensor, upper: Tensor) -> Sloped:
        """Return a z + (1 - a) times the lines of a ReLU, for f(z) = a z + (1 - a) max(z, 0), in a few sweeps.

        If a > 1 they change sides, and with it the adaptive slope lies above.
        """
        flat, steep, offset = relaxation(lower, upper)
        share = 1 - self.slope
        flat, steep, offset = flat * share + self.slope, steep * share + self.slope, offset * share
        if share >= 0:
            return Sloped(None, offset, (flat,), (steep,))
        return Sloped(offset, torch.zeros_like(offset), (steep,), (flat,))


@dataclass(frozen=True, eq=False)
class Prelu(PiecewiseLinear):
    """x where x > 0, elsewhere weight · x; `weight` (C,) for the channels, axis 1, or (1,), of any sign and size."""

    weight: Tensor

    @property
    def shape(self) -> Shape:
        """A kink at 0, where a negative weight lets it turn."""
        return Shape(knots=(0.0,), turning=(0.0,))

    @property
    def gradients(self) -> tuple[Number, ...]:
        """The weights, and 1."""
        return self.weight, 1.0

    def apply(self, x: Tensor) -> Tensor:
        """Rectify (B, C, ...)."""
        return F.prelu(x, self.weight)


@dataclass(frozen=True, eq=False)
class Absolute(PiecewiseLinear):
    """|x|."""

    ulps: ClassVar[float] = 0.0

    @property
    def shape(self) -> Shape:
        """A kink at 0, where it turns."""
        return Shape(knots=(0.0,), turning=(0.0,))

    @property
    def gradients(self) -> tuple[Number, ...]:
        """-1 and 1."""
        return -1.0, 1.0

    def apply(self, x: Tensor) -> Tensor:
        """Return |x|."""
        return x.abs()


@dataclass(frozen=True, eq=False)
class Clamp(PiecewiseLinear):
    """min(max(x, low), high), either of them None for no limit: Hardtanh, ReLU6, maximum and minimum with a number."""

    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        if not low <= high or -low == high == math.inf:
            raise ValueError(f"out of range: {self.low=}, {self.high=}, must be one limit at least, low <= high")

    @property
    def shape(self) -> Shape:
        """A kink at each limit."""
        return Shape(knots=tuple(limit for limit in (self.low, self.high) if limit is not None))

    @property
    def gradients(self) -> tuple[Number, ...]:
        """1 between the limits, 0 beyond."""
        return *[0.0] * (self.low is not None), 1.0, *[0.0] * (self.high is not None)

    def apply(self, x: Tensor) -> Tensor:
        """Clamp."""
        return x.clamp(self.low, self.high)


@dataclass(frozen=True, eq=False)
class Hardsigmoid(PiecewiseLinear):
    """min(max(x + 3, 0), 6) / 6."""

    ulps: ClassVar[float] = 3.0

    @property
    def shape(self) -> Shape:
        """Kinks at -3 and 3."""
        return Shape(knots=(-3.0, 3.0))

    @property
    def gradients(self) -> tuple[Number, ...]:
        """0, 1/6 and 0."""
        return 0.0, 1 / 6, 0.0

    def apply(self, x: Tensor) -> Tensor:
        """Return the piecewise linear sigmoid."""
        return F.hardsigmoid(x)


@dataclass(frozen=True, eq=False)
class Hardswish(Piecewise):
    """x · min(max(x + 3, 0), 6) / 6: x (x + 3) / 6 from -3 to 3, smallest at -1.5."""

    ulps: ClassVar[float] = 4.0

    @property
    def shape(self) -> Shape:
        """Kinks at -3 and 3, convex between them: f'(z) = z / 3 + 1 / 2."""
        curve = Curve(1, 1, lambda z: z / 3 + 0.5, lambda slope: 3 * slope - 1.5)
        return Shape(knots=(-3.0, 3.0), curves=(curve,), tangents=True, turning=(-1.5,))

    def apply(self, x: Tensor) -> Tensor:
        """Return the piecewise quadratic SiLU."""
        return F.hardswish(x)

    def value(self, x: Tensor) -> Tensor:
        """Return f(x), 0 at -infinity, without the overflow of torch's product with 6."""
        return x.clamp(min=-4) * ((x + 3).clamp(0, 6) / 6)

    def derivative(self, x: Tensor) -> Tensor:
        """Return f'(x)."""
        return torch.where(x > 3, 1.0, torch.where(x > -3, x / 3 + 0.5, 0.0))

    def tangent_point(self, curve: Curve, side: int, through: Tensor) -> Tensor:  # noqa: ARG002
        """Return t for the end e: q(z) = z (z + 3) / 6 is (e - t)^2 / 6 above its tangent at t; this is q(e) - f(e)."""
        return through - side * (through * (through - 3 * side)).clamp(min=0).sqrt()

    @property
    def steepness(self) -> float:
        """f'(3) from below."""
        return 1.5


@dataclass(frozen=True, eq=False)
class Square(Piecewise):
    """x^2."""

    ulps: ClassVar[float] = 1.0

    @property
    def shape(self) -> Shape:
        """Convex, smallest at 0."""
        return Shape(knots=(), curves=(Curve(0, 1, self.derivative, lambda slope: slope / 2),), turning=(0.0,))

    def apply(self, x: Tensor) -> Tensor:
        """Square."""
        return x.square()

    def derivative(self, x: Tensor) -> Tensor:
        """Return 2 x."""
        return 2 * x

    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return l + u."""
        return finite(lower) + finite(upper)

    @property
    def steepness(self) -> float:
        """There is no limit; see `steepest`."""
        return math.inf

    def steepest(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Return 2 |z| for the largest |z|."""
        return 2 * torch.maximum(lower.abs(), upper.abs())

    def carried_error(self, corners: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
        """Return how far the square of a value on the box, or around it, moves with the value."""
        (lower, upper), (error,) = corners, errors
        return self.steepest(lower - error, upper + error) * error

    def widest(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far lines that touch z^2 on a smaller interval may leave its box."""
        (low, high), reach = self.box(lower, upper), self.steepest(lower, upper) * (upper - lower)
        return low - reach, high + reach
