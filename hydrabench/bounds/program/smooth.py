"""Exponential and S-shaped activation functions, whose derivatives have inverses in closed form.

Each says where it bends and where a line of a given slope touches its curved pieces; its box and its lines follow in
`piecewise`. Settings are the numbers that torch's layers take. `ulps` leaves room for the accuracy of exp, tanh and
log1p on CPUs and GPUs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.program.piecewise import Curve, Piecewise, Shape

BEYOND = 4.0 * 2**-23  # relative distance from a threshold at which no rounding confuses its two sides


@dataclass(frozen=True, eq=False)
class Elu(Piecewise):
    """scale · x where x > 0, elsewhere scale · alpha · (exp(x · input_scale) - 1); all three > 0.

    ELU has scale = input_scale = 1; SELU both of its constants; CELU input_scale = 1 / alpha. Convex as a whole if the
    slope alpha · input_scale · scale before 0 is at most that behind it.
    """

    ulps: ClassVar[float] = 8.0
    alpha: float
    scale: float = 1.0
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        if not min(self.alpha, self.scale, self.input_scale) > 0:
            raise ValueError(f"out of range: {self.alpha=}, {self.scale=}, {self.input_scale=}, must be > 0")

    @property
    def before(self) -> float:
        """f' just below 0."""
        return self.alpha * self.scale * self.input_scale

    @property
    def shape(self) -> Shape:
        """A kink at 0, convex before it."""
        return Shape(knots=(0.0,), curves=(Curve(0, 1, self._bent, self._touch),), tangents=self.before > self.scale)

    def _bent(self, z: Tensor) -> Tensor:
        return self.before * (z.clamp(max=0) * self.input_scale).exp()

    def _touch(self, slope: Tensor) -> Tensor:
        return (slope.clamp(min=0) / self.before).log() / self.input_scale

    def apply(self, x: Tensor) -> Tensor:
        """Return the exponential linear unit."""
        return torch.ops.aten.elu(x, self.alpha, self.scale, self.input_scale)  # type: ignore[no-any-return]

    def derivative(self, x: Tensor) -> Tensor:
        """Return f'(x), at 0 that from below."""
        return torch.where(x > 0, self.scale, self._bent(x))

    @property
    def steepness(self) -> float:
        """The larger slope at 0."""
        return max(self.before, self.scale)


@dataclass(frozen=True, eq=False)
class SShaped(Piecewise, ABC):
    """An odd function but for a constant, convex before 0 and concave behind it."""

    ulps: ClassVar[float] = 6.0

    @abstractmethod
    def distance(self, slope: Tensor) -> Tensor:
        """Return z >= 0 with f'(z) = slope."""

    @property
    def shape(self) -> Shape:
        """It turns from convex to concave at 0."""
        left = Curve(0, 1, self.derivative, lambda slope: -self.distance(slope))
        return Shape(
            knots=(0.0,), curves=(left, Curve(1, -1, self.derivative, self.distance)), kinked=False, tangents=True
        )


@dataclass(frozen=True, eq=False)
class Sigmoid(SShaped):
    """1 / (1 + exp(-x))."""

    def distance(self, slope: Tensor) -> Tensor:
        """Return z >= 0 with f'(z) = s (1 - s) = slope: s = (1 + r) / 2 with r^2 = 1 - 4 slope."""
        root = (1 - 4 * slope).clamp(0, 1).sqrt()
        return 2 * root.log1p() - (4 * slope).clamp(0, 1).log()

    def apply(self, x: Tensor) -> Tensor:
        """Return the logistic function."""
        return x.sigmoid()

    def derivative(self, x: Tensor) -> Tensor:
        """Return f'(x)."""
        return x.sigmoid() * (-x).sigmoid()

    @property
    def steepness(self) -> float:
        """f'(0)."""
        return 0.25


@dataclass(frozen=True, eq=False)
class Tanh(SShaped):
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x))."""

    def distance(self, slope: Tensor) -> Tensor:
        """Return z >= 0 with f'(z) = 1 - tanh(z)^2 = slope."""
        return (1 - slope).clamp(0, 1).sqrt().log1p() - slope.clamp(0, 1).log() / 2

    def apply(self, x: Tensor) -> Tensor:
        """Return the hyperbolic tangent."""
        return x.tanh()

    def derivative(self, x: Tensor) -> Tensor:
        """Return f'(x)."""
        return 4 * (2 * x).sigmoid() * (-2 * x).sigmoid()

    @property
    def steepness(self) -> float:
        """f'(0)."""
        return 1.0


@dataclass(frozen=True, eq=False)
class Softplus(Piecewise):
    """log(1 + exp(beta x)) / beta, and x itself where beta x > threshold, as torch computes it; beta > 0.

    The function that everything here speaks of falls by s(-t), s being the smooth one, where it passes the threshold t.
    """

    ulps: ClassVar[float] = 8.0
    beta: float = 1.0
    threshold: float = 20.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"out of range: {self.beta=}, must be > 0")

    @property
    def shape(self) -> Shape:
        """Convex, but for the fall at the threshold."""
        return Shape(knots=(), curves=(Curve(0, 1, self.derivative, self._touch),))

    def _touch(self, slope: Tensor) -> Tensor:
        return slope.clamp(0, 1).logit() / self.beta

    def apply(self, x: Tensor) -> Tensor:
        """Return what torch computes."""
        return F.softplus(x, self.beta, self.threshold)

    def value(self, x: Tensor) -> Tensor:
        """Return the smooth function s."""
        return torch.logaddexp(self.beta * x, torch.zeros_like(x)) / self.beta

    def derivative(self, x: Tensor) -> Tensor:
        """Return s'(x)."""
        return (self.beta * x).sigmoid()

    @property
    def steepness(self) -> float:
        """Its limit."""
        return 1.0

    def box(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of f on [lower, upper]: those of s, less the most and the least that s - f can be there."""
        low, high = super().box(lower, upper)
        most, least = self._fallen(lower, upper)
        return low - most, high - least

    def extremes(self, slope: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of f(z) - slope z, as `box` does."""
        low, high = super().extremes(slope, lower, upper)
        most, least = self._fallen(lower, upper)
        return low - most, high - least

    def _fallen(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest and the smallest s(z) - f(z), which is 0 up to the threshold and s(-z) behind it."""
        start = self.threshold / self.beta
        near, far = start - BEYOND * abs(start), start + BEYOND * abs(start)
        most = torch.where(upper > near, self.value(-lower.clamp(min=near)).nan_to_num(), 0.0)
        return most, torch.where(lower > far, self.value(-upper), 0.0)
