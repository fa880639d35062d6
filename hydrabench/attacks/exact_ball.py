"""Adversarial examples as somebody can replay them: float32 pixels that lie in the exact ball.

Points of an attack or a bound are computed with rounding and may lie a last bit outside.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from hydrabench.threat import PIXEL_MAX, PIXEL_MIN, Norm, float_below

INSIDE = 1 - 2.0**-22  # share of the radius to which points further out are brought back


def in_exact_ball(points: Tensor, x: Tensor, epsilon: Fraction, *, norm: Norm) -> Tensor:
    """Return points that lie within exactly `epsilon` of images and in [0, 1], moved as little as float32 allows.

    Args:
        points: (B, C, H, W), any values but NaN. x: images, (B, C, H, W), in [0, 1], exact in float32.
        epsilon: radius in pixel units, >= 0.
    Returns: float32, (B, C, H, W).
    """
    x, points = x.double(), points.double().clamp(PIXEL_MIN, PIXEL_MAX)
    radius = float_below(epsilon)
    found = (_in_box if norm == "linf" else _in_l2_ball)(points, x, radius)
    outside = ~_is_inside(found.double(), x, radius, norm)
    return torch.where(outside.view(-1, *[1] * (x.ndim - 1)), x.float(), found)


def _in_box(points: Tensor, x: Tensor, radius: float) -> Tensor:
    reach = radius * INSIDE
    found = torch.minimum(torch.maximum(points, x - reach), x + reach).float()
    inward = torch.where(found.double() > x, -torch.inf, torch.inf).float()
    return torch.where((found.double() - x).abs() > reach, torch.nextafter(found, inward), found)


def _in_l2_ball(points: Tensor, x: Tensor, radius: float) -> Tensor:
    step = points - x
    length = step.flatten(1).norm(dim=1).clamp(min=torch.finfo(step.dtype).tiny)
    rounded = 2.0**-25 * step.shape[1:].numel() ** 0.5  # the most that rounding to float32 moves a point of [0, 1]
    share = ((radius * INSIDE - rounded) / length).clamp(0, 1)
    found: Tensor = (x + step * share.view(-1, *[1] * (x.ndim - 1))).float()
    return found


def _is_inside(points: Tensor, x: Tensor, radius: float, norm: Norm) -> Tensor:
    """Whether points of float32 lie in the ball for certain, in spite of rounding in float64."""
    step = (points - x).flatten(1)
    length: Tensor = torch.linalg.vector_norm(step, torch.inf if norm == "linf" else 2, dim=1)
    in_range = ((points >= PIXEL_MIN) & (points <= PIXEL_MAX)).flatten(1).all(1)
    rounded = 2.0**-52 * (step.shape[1] + 4)  # more than rounding does to a length
    return ((length <= radius * (1 - rounded)) & in_range).logical_or(length == 0)
