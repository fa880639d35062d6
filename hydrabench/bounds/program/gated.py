"""GELU and SiLU: x times a gate that rises from 0 to 1, with derivatives that are inverted by a table.

As gate(x) + gate(-x) = 1, f'(x) + f'(-x) = 1 and f''(x) = f''(-x): convex between -c and c, concave beyond.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrabench.bounds.program.piecewise import ENTRIES, FAR, Curve, Piecewise, Shape

Table = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Gated(Piecewise, ABC):
    """x · gate(x).

    inflection: c. bottom: where f is smallest. ulps: the gate is rounded relative to 1, so f relative to x.
    """

    ulps: ClassVar[float] = 6.0
    inflection: ClassVar[float]
    bottom: ClassVar[float]

    @property
    def shape(self) -> Shape:
        """Concave, convex, concave."""
        c = self.inflection
        pieces = (self._touch_tail, -1), (self._touch_middle, 1), (lambda slope: -self._touch_tail(1 - slope), -1)
        curves = tuple(Curve(piece, bend, self.derivative, touch) for piece, (touch, bend) in enumerate(pieces))
        return Shape(knots=(-c, c), curves=curves, kinked=False, tangents=True, turning=(self.bottom,))

    @abstractmethod
    def second(self, x: Tensor) -> Tensor:
        """Return f''(x)."""

    def value(self, x: Tensor) -> Tensor:
        """Return f(x), 0 at -infinity."""
        return self.apply(x.clamp(min=torch.finfo(x.dtype).min))

    @property
    def steepness(self) -> float:
        """More than f'(c), which is 1.1290 at most."""
        return 1.13

    def _touch_tail(self, slope: Tensor) -> Tensor:
        """Return z <= -c with f'(z) = slope; f' falls from 0 to f'(-c)."""
        start, table = _tables(type(self), slope.dtype, slope.device)[:2]
        found = self._solved(slope, (1 - slope / start).clamp(0, 1).sqrt(), table)
        return found.masked_fill(slope >= 0, -torch.inf)

    def _touch_middle(self, slope: Tensor) -> Tensor:
        """Return z in [-c, c] with f'(z) = slope."""
        start, _, table = _tables(type(self), slope.dtype, slope.device)
        mirrored = torch.where(slope > 0.5, 1 - slope, slope)  # f'(-z) = 1 - f'(z)
        found = self._solved(mirrored, ((mirrored - start) / (0.5 - start)).clamp(0, 1).sqrt(), table)
        return torch.where(slope > 0.5, -found, found)

    def _solved(self, slope: Tensor, root: Tensor, table: Table) -> Tensor:
        """Return z with f'(z) = slope from a table of z over `root`: linear between its entries, then two Newton steps.

        f' is flat at -c, so slope - f'(-c) is like (z + c)^2 there, and its root like z + c.
        """
        roots, places = table
        after = torch.searchsorted(roots, root.contiguous()).clamp(1, ENTRIES - 1)
        first, last = places[after - 1], places[after]
        share = (root - roots[after - 1]) / (roots[after] - roots[after - 1])
        z = torch.lerp(first, last, share.nan_to_num(nan=0.5).clamp(0, 1))
        for _ in range(2):
            step = ((self.derivative(z) - slope) / self.second(z)).nan_to_num(nan=0.0)
            z = torch.minimum(torch.maximum(z - step, torch.minimum(first, last)), torch.maximum(first, last))
        return z


@functools.lru_cache(maxsize=32)
def _tables(kind: type[Gated], dtype: torch.dtype, device: torch.device) -> tuple[float, Table, Table]:
    """Return f'(-c), and tables for the left tail and for the left half of the middle, roots ascending."""
    function, c = kind(), kind.inflection
    start = function.derivative(torch.tensor(-c, dtype=torch.float64))
    tail = torch.linspace(0, 1, ENTRIES, dtype=torch.float64).square().mul(c - FAR).sub(c)
    middle = torch.linspace(-c, 0, ENTRIES, dtype=torch.float64)
    tables = []
    for places, end in ((tail, 0.0), (middle, 0.5)):
        roots = ((function.derivative(places) - start) / (end - start)).clamp(0, 1).sqrt().cummax(0).values
        tables.append((roots.to(device, dtype), places.to(device, dtype)))
    return float(start), tables[0], tables[1]


@dataclass(frozen=True, eq=False)
class Gelu(Gated):
    """x times the standard normal distribution function of x."""

    inflection: ClassVar[float] = math.sqrt(2)
    bottom: ClassVar[float] = -0.7517915246935645

    def apply(self, x: Tensor) -> Tensor:
        """Return the Gaussian error linear unit."""
        return F.gelu(x)

    def derivative(self, x: Tensor) -> Tensor:
        """Return f'(x)."""
        gate: Tensor = torch.special.ndtr(x)
        return gate + x.clamp(-FAR, FAR) * _density(x)

    def second(self, x: Tensor) -> Tensor:
        """Return f''(x)."""
        return _density(x) * (2 - x.square())


@dataclass(frozen=True, eq=False)
class TanhGelu(Gated):
    """x (1 + tanh(w)) / 2 with w = sqrt(2 / pi) (x + 0.044715 x^3): torch's GELU with approximate="tanh"."""

    inflection: ClassVar[float] = 1.4185040087908284
    bottom: ClassVar[float] = -0.7524614220710163
    CUBIC: ClassVar[float] = 0.044715
    FACTOR: ClassVar[float] = math.sqrt(2 / math.pi)

    def apply(self, x: Tensor) -> Tensor:
        """Return the approximate Gaussian error linear unit."""
        return F.gelu(x, approximate="tanh")

    def derivative(self, x: Tensor) -> Tensor:
        """Return f'(x)."""
        gate, rise, _ = self._gate(x.clamp(-FAR, FAR))
        return gate + x.clamp(-FAR, FAR) * rise

    def second(self, x: Tensor) -> Tensor:
        """Return f''(x)."""
        _, rise, bend = self._gate(x)
        return 2 * rise + x * bend

    def _gate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (1 + tanh(w)) / 2 = sigmoid(2 w) and its first two derivatives."""
        double = 2 * self.FACTOR * (x + self.CUBIC * x**3)
        first, second = 2 * self.FACTOR * (1 + 3 * self.CUBIC * x**2), 12 * self.FACTOR * self.CUBIC * x
        gate, other = double.sigmoid(), (-double).sigmoid()
        return gate, gate * other * first, gate * other * (second + first.square() * (other - gate))


@dataclass(frozen=True, eq=False)
class Silu(Gated):
    """x / (1 + exp(-x))."""

    inflection: ClassVar[float] = 2.3993572805154677
    bottom: ClassVar[float] = -1.2784645427610738

    def apply(self, x: Tensor) -> Tensor:
        """Return the sigmoid linear unit, or swish."""
        return F.silu(x)

    def derivative(self, x: Tensor) -> Tensor:
        """Return f'(x)."""
        return x.sigmoid() * (1 + x.clamp(-1e3, 1e3) * (-x).sigmoid())

    def second(self, x: Tensor) -> Tensor:
        """Return f''(x)."""
        gate, other = x.sigmoid(), (-x).sigmoid()
        return gate * other * (2 + x * (other - gate))


def _density(x: Tensor) -> Tensor:
    return (x.square() / -2).exp() / math.sqrt(2 * math.pi)
