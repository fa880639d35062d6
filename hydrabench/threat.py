"""Threat models: exact radii, and the box of images that an attacker may reach.

Images are float tensors in [0, 1] everywhere; a network that needs normalised inputs carries the
normalisation as its first layer. A radius is written as a fraction of the pixel range ("8/255") and
kept as an exact `Fraction` until it meets a tensor.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from hydrabench.errors import ConfigError, shortened

if TYPE_CHECKING:
    from torch import Tensor

PIXEL_MIN, PIXEL_MAX = 0.0, 1.0
Norm = Literal["linf", "l2"]  # of balls that bounds certify
AttackNorm = Literal["linf", "l2", "l1"]  # of balls that attacks search
NORM_TEXTS = {"linf": "L∞", "l2": "L2", "l1": "L1"}  # largest ball of one radius first
_DECIMAL = r"(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,2})?"
_NUMBER = re.compile(rf"({_DECIMAL})(?:\s*/\s*(\d{{1,40}}))?", re.ASCII)
LARGEST_L2 = 20  # the field's radii reach 5; 20 is over a third of the way from black to white for 3 x 32 x 32 pixels
LARGEST_L1 = 1000  # the field's radii reach 12 for 3 x 32 x 32 pixels and 255 for ImageNet
LARGEST_NOISE = 10  # the field's noise reaches 2; at 10 an image of [0, 1] is lost in it
SMALLEST_L2_LEVELS = 16  # an L2 radius of so few grey levels is nearly always meant for L∞


def read_number(given: str | int | float) -> Fraction | None:
    """Read a number of at least 0 exactly: "8/255", "8 / 255", "0.1", "1e-3"; None for anything else.

    A decimal or float that lies within float64 rounding of k/255 is k/255, so that the Python expression `8/255` and
    the text "8/255" are one radius; any other is exactly what is written ("0.1" is 1/10).
    """
    found = _NUMBER.fullmatch(str(given).strip()) if not isinstance(given, bool) else None
    if found is None:
        return None
    numerator, denominator = Fraction(found[1]), found[2]
    if denominator is not None:
        return numerator / int(denominator) if int(denominator) else None
    level = Fraction(round(numerator * 255), 255)
    return level if float(level) == float(numerator) else numerator


def parse_radius(text: str | int | float, *, norm: AttackNorm = "linf") -> Fraction:
    """Read a radius in pixel units exactly, see `read_number`: "8/255" is the fraction 8/255, "0.1" is 1/10.

    Args:
        text: a fraction "a/b" or a decimal number; at least 0, at most 1 for `linf`, `LARGEST_L2` for `l2` and
            `LARGEST_L1` for `l1`.
        norm: the norm it is measured in; only an L∞ radius may not exceed 1.
    Raises: ConfigError that says what was read, the allowed range and what to write instead.
    """
    radius = read_number(text)
    written = str(text).strip()
    if radius is None:
        hint = "a radius is not negative; " if written.startswith("-") else ""
        raise ConfigError(
            f"epsilon {shortened(written)} is not a radius: {hint}write a fraction of the pixel range such as 8/255"
        )
    limit = {"linf": 1, "l2": LARGEST_L2, "l1": LARGEST_L1}[norm]
    range_text = "the pixel range" if norm == "linf" else f"what {NORM_TEXTS[norm]} radii of images reach"
    if radius > limit:
        raise ConfigError(
            f"epsilon {shortened(written)} lies outside [0, {limit}], {range_text}; {_in_levels(written, '8/255')}"
        )
    return radius


def parse_noise(text: str | int | float) -> Fraction:
    """Read the standard deviation of noise in pixel units, above 0 and at most `LARGEST_NOISE`, as `parse_radius` does.

    Raises: ConfigError that says what was read, the allowed range and what to write instead.
    """
    sigma = read_number(text)
    written = str(text).strip()
    if not sigma:
        raise ConfigError(f"sigma {shortened(written)} is no noise level: write a number above 0 such as 0.25 or 1/4")
    if sigma > LARGEST_NOISE:
        raise ConfigError(
            f"sigma {shortened(written)} lies outside (0, {LARGEST_NOISE}], in pixel units; "
            f"{_in_levels(written, '0.25')}"
        )
    return sigma


def _in_levels(written: str, example: str) -> str:
    """Return what to write instead of a number that was probably meant in grey levels."""
    number = written.partition("/")[0].strip()
    if "/" in written or not re.fullmatch(r"\d{1,3}(\.\d{1,6})?", number) or float(number) > 255:
        return f"write a number such as {example}"
    return f"if you mean {number} of 255 grey levels, write {number}/255"


def doubt(norm: AttackNorm, radius: Fraction) -> str | None:
    """Return a warning for an L2 or L1 radius that looks like an L∞ one, such as 8/255."""
    if norm == "linf" or not 0 < radius * 255 <= SMALLEST_L2_LEVELS:
        return None
    return (
        f"note: an {NORM_TEXTS[norm]} radius of {radius_text(radius)} is {float(radius):.3g} in pixel units, where the "
        f"field's start at {'36/255' if norm == 'l2' else '2'}; for the L∞ ball of that radius leave out --norm {norm}"
    )


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

    norm: AttackNorm
    epsilon: Fraction

    def __str__(self) -> str:
        return f"{NORM_TEXTS[self.norm]} {radius_text(self.epsilon)}"

    def contains(self, other: Threat) -> bool:
        """Return whether every perturbation that `other` allows is allowed here too, in any dimension.

        An L1 ball lies inside the L2 ball of the same radius, and that inside the L∞ ball; the reverse inclusions
        depend on the dimension and are not claimed.
        """
        order = list(NORM_TEXTS)
        return other.epsilon <= self.epsilon and order.index(self.norm) <= order.index(other.norm)


def float_above(radius: Fraction) -> float:
    """Return the smallest float that is at least `radius`."""
    found = float(radius)
    return found if Fraction(found) >= radius else math.nextafter(found, math.inf)


def float_below(radius: Fraction) -> float:
    """Return the largest float that is at most `radius`."""
    found = float(radius)
    return found if Fraction(found) <= radius else math.nextafter(found, -math.inf)


def linf_box(x: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corner of the L∞ ball around `x`, clipped to the pixel range and to nothing else.

    Args:
        x: images, (B, C, H, W), in [0, 1].
        epsilon: radius in pixel units, >= 0; or a tensor of them that broadcasts to `x`.
    Returns: two tensors of the shape of `x`.
    """
    return (x - epsilon).clamp_(PIXEL_MIN, PIXEL_MAX), (x + epsilon).clamp_(PIXEL_MIN, PIXEL_MAX)
