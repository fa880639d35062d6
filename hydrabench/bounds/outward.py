"""Bounds of rounding: the error of a sum, and rounding away from a claim in float64.

A sum of n products in floating point is off by at most gamma_n = n u / (1 - n u) times the sum of their absolute
values, whatever the order and whether or not products and sums are fused; u is the unit roundoff.
Source: Higham (2002), "Accuracy and stability of numerical algorithms", sections 3.1 and 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
MORE = 32  # roundings besides those of a sum: scales and shifts from statistics, corners, offsets, slopes
ULP = 2.0**-52  # twice the most that rounding to nearest does in float64, relative to its result
TINY = 2.0**-1000  # more than underflow can do to a product in float64


def growth(terms: int, dtype: torch.dtype) -> float:
    """Return what rounding can do to a sum of `terms` products, relative to the sum of their absolute values.

    Twice n u, which exceeds gamma_n (1 + gamma_n) and so also covers that the absolute values are summed in floating
    point; infinite where n u is more than 1/8.
    """
    product = terms * UNIT[dtype]
    return 2 * product if product <= 1 / 8 else float("inf")


def up(rounded: Tensor) -> Tensor:
    """At least the exact sum, or normal product, that was rounded to `rounded`; 0 and subnormal sums are exact."""
    return rounded + rounded.abs() * ULP


def down(rounded: Tensor) -> Tensor:
    """At most the exact sum, or normal product, that was rounded to `rounded`."""
    return rounded - rounded.abs() * ULP
