"""Softshrink as an operation that all bounds know, and a network of it as an architecture; `arch: softshrink_net`.

`extremes`, which must hold for any slope, makes every line of every method sound; `slopes` only makes them tight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink

from hydrabench.bounds.program.convert import LAYERS
from hydrabench.bounds.program.operations import Elementwise
from hydrabench.models import MODELS, Architecture


@dataclass(frozen=True, eq=False)
class Softshrink(Elementwise):
    """f(z) = z - size for z > size, z + size for z < -size, 0 between: it never falls, and has kinks at ±size."""

    dead: float
    steepness: ClassVar[float] = 1.0  # type: ignore[misc]
    ulps: ClassVar[float] = 1  # torch computes one difference

    def apply(self, x: Tensor) -> Tensor:
        """Move towards zero."""
        return softshrink(x, self.dead)

    def box(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """From f(l) to f(u)."""
        return self.apply(lower), self.apply(upper)

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """That of the chord, twice."""
        chord = self.chord(lower, upper)
        return chord, chord

    def extremes(self, slope: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """f(z) - slope · z is linear between its kinks, so it is smallest and largest at an end or a kink."""
        kinks = [torch.full_like(lower, kink).clamp(lower, upper) for kink in (-self.dead, self.dead)]
        found = torch.stack([self.apply(point) - slope * point for point in (lower, upper, *kinks)])
        return found.amin(0), found.amax(0)

    def decided(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Where no kink lies inside."""
        return (lower >= self.dead) | (upper <= -self.dead) | ((lower >= -self.dead) & (upper <= self.dead))


def softshrink_net(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A convolution and a hidden layer, each with Softshrink behind it."""
    features = 8 * ((shape[1] + 1) // 2) * ((shape[2] + 1) // 2)
    first = [nn.Conv2d(shape[0], 8, 3, 2, padding=1), nn.Softshrink(0.05), nn.Flatten()]
    return nn.Sequential(*first, nn.Linear(features, 32), nn.Softshrink(0.05), nn.Linear(32, num_classes))


LAYERS[nn.Softshrink] = lambda layer: Softshrink(layer.lambd)
MODELS["softshrink_net"] = Architecture(softshrink_net)
