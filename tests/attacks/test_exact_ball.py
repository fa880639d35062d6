"""Adversarial examples as float32 pixels lie in the exact ball, whatever was handed over."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hydrabench.attacks import in_exact_ball


def distance_squared(point, x, norm):
    """Exactly, in fractions: the largest difference squared, or the sum of the squares."""
    squares = [Fraction(p - q) ** 2 for p, q in zip(point.flatten().tolist(), x.flatten().tolist(), strict=True)]
    return max(squares) if norm == "linf" else sum(squares)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([0, 1, 8, 16, 100]), scale=st.sampled_from([0.5, 1.0, 3.0]))
def test_points_lie_in_the_exact_ball_and_hardly_move(norm, seed, levels, scale):
    """Also for pixels that are a radius away from 0 or 1, so that a corner is all but 0."""
    rng = torch.Generator().manual_seed(seed)
    epsilon = Fraction(levels, 255)
    x = (torch.rand(2, 1, 3, 4, generator=rng) * 255).round() / 255
    x[0, 0, 0, :2] = torch.tensor([float(epsilon), 1 - float(epsilon)])
    points = x.double() + scale * float(epsilon) * (2 * torch.rand(x.shape, generator=rng, dtype=torch.float64) - 1)
    found = in_exact_ball(points, x, epsilon, norm=norm)
    assert found.dtype == torch.float32
    assert ((found >= 0) & (found <= 1)).all()
    for one, image in zip(found, x, strict=True):
        assert distance_squared(one, image, norm) <= epsilon**2
    if scale == 0.5 and norm == "linf":
        assert torch.allclose(found.double(), points.clamp(0, 1), atol=1e-6)
    if levels and scale == 3.0:
        assert (found != x).flatten(1).any(1).all()
