"""Threat models: exact radii, and the box of images that an attacker may reach.

Images are float tensors in [0, 1] everywhere; a network that needs normalised inputs carries the
normalisation as its first layer. A radius is written as a fraction of the pixel range ("8/255") and
kept as an exact `Fraction` until it meets a tensor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from hydrabench.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

PIXEL_MIN, PIXEL_MAX = 0.0, 1.0
Norm = Literal["linf", "l2"]
_RADIUS = re.compile(r"\d+(\.\d+)?(/\d+)?|\.\d+")


def parse_radius(text: str | int | float, *, norm: Norm = "linf") -> Fraction:
    """Read a radius in pixel units exactly: "8/255" is the fraction 8/255, "0.1" is 1/10.

    Args:
        text: a fraction "a/b" or a decimal number; at least 0, and at most 1 for `linf`.
        norm: the norm it is measured in; an L2 radius may exceed 1.
    Raises: ConfigError that says what was read, the allowed range and what to write instead.
    """
    written = str(text).strip()
    if not _RADIUS.fullmatch(written) or re.search(r"/0+$", written):
        hint = "a radius is not negative; " if written.startswith("-") else ""
        raise ConfigError(
            f"epsilon {written!r} is not a radius: {hint}write a fraction of the pixel range such as 8/255"
        )
    numerator, _, denominator = written.partition("/")
    radius = Fraction(numerator) / Fraction(denominator or "1")
    if norm == "linf" and radius > 1:
        raise ConfigError(
            f"epsilon {written!r} lies outside [0, 1], the pixel range; "
            f"if you mean {written} of 255 grey levels, write {numerator}/255"
        )
    return radius


def radius_text(radius: Fraction) -> str:
    """Write a radius the way the field does: over 255 if it is a whole number of grey levels."""
    levels = radius * 255
    if radius and levels.denominator == 1 and radius.denominator != 1:
        return f"{levels.numerator}/255"
    decimal = str(float(radius))
    return decimal if radius.denominator > 1 and Fraction(decimal) == radius else str(radius)


@dataclass(frozen=True)
class Threat:
    """All images within `epsilon` of the original in `norm`, intersected with the pixel range."""

    norm: Norm
    epsilon: Fraction

    def __str__(self) -> str:
        return f"{'L∞' if self.norm == 'linf' else 'L2'} {radius_text(self.epsilon)}"

    def contains(self, other: Threat) -> bool:
        """Whether every perturbation that `other` allows is allowed here too, in any dimension.

        An L2 ball lies inside the L∞ ball of the same radius; the reverse inclusion depends on the
        dimension and is not claimed.
        """
        return other.epsilon <= self.epsilon and self.norm in (other.norm, "linf")


def linf_box(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Lower and upper corner of the L∞ ball around `x`, clipped to the pixel range and to nothing else.

    Args:
        x: images, (B, C, H, W), in [0, 1].
        epsilon: radius in pixel units, >= 0.
    Returns: two tensors of the shape of `x`.
    """
    return (x - epsilon).clamp_(PIXEL_MIN, PIXEL_MAX), (x + epsilon).clamp_(PIXEL_MIN, PIXEL_MAX)
