"""Integer noise: its law against SciPy's, its exact thresholds, and what the certificate gives up for it."""

from __future__ import annotations

from decimal import Decimal, getcontext, localcontext
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from hydrabench.smoothing.discrete import _PI, BITS, largest_noise, slack, thresholds


@pytest.mark.parametrize("sigma", [0.01, 0.12, 0.25, 0.5])
def test_thresholds_agree_with_scipys_normal_distribution(sigma):
    """Relatively, too, in the lower tail, where float64 has digits to spare."""
    top = largest_noise(sigma)
    k = np.arange(-top, top)
    exact = norm.cdf((k + 0.5) / (255 * sigma))
    ours = np.array(thresholds(sigma), dtype=object)
    assert len(ours) == 2 * top
    assert np.abs(np.array([t / 2**BITS for t in ours]) - exact).max() < 1e-15
    body = (exact > 1e-12) & (exact < 0.5)
    assert np.abs(np.array([t / 2**BITS for t in ours[body]]) / exact[body] - 1).max() < 1e-6


def test_a_threshold_worked_to_many_digits():
    """255 sigma = 1/2, so the first threshold above the middle is Phi(1): 0.841344746068542948585232545632."""
    ours = thresholds(0.5 / 255)
    phi = Decimal("0.84134474606854294858523254563203622")
    assert abs(Decimal(ours[len(ours) // 2]) / 2**BITS - phi) < Decimal(2) ** -50  # 0.5 / 255 is rounded itself
    assert str(_PI)[:12] == "3.1415926535"


def test_thresholds_rise_are_symmetric_and_cover_the_tails():
    """T_j + T_(2M-1-j) is 2^62, or one less: both are rounded down."""
    ours = thresholds(0.25)
    assert list(ours) == sorted(ours)
    assert all(0 <= 2**BITS - a - b <= 1 for a, b in zip(ours, reversed(ours), strict=True))
    assert ours[0] == 0
    assert ours[-1] >= 2**BITS - 1


def test_the_decimal_context_of_the_caller_is_left_alone():
    with localcontext() as context:
        context.prec = 7
        thresholds.cache_clear()
        before = thresholds(0.05)
        assert getcontext().prec == 7
    thresholds.cache_clear()
    assert thresholds(0.05) == before


@given(sigma=st.floats(0.01, 2), d=st.integers(1, 150_528), p=st.floats(0.5, 0.99999))
@settings(max_examples=60)
def test_subtracting_the_slack_is_at_least_as_careful_as_the_exact_formula(sigma, d, p):
    """Phi^-1(p - slack) <= Phi^-1(p - delta) - Phi^-1(1/2 + delta)."""
    delta = d * (2 * largest_noise(sigma) + 2) / 2**BITS
    phi = NormalDist().inv_cdf
    assert slack(sigma, d) >= 2 * delta
    if p - slack(sigma, d) > 0.5:
        assert phi(p - slack(sigma, d)) <= phi(p - delta) - phi(0.5 + delta) + 1e-12


def test_the_slack_costs_next_to_nothing():
    """ImageNet at sigma 1: d = 150,528, M = 2,295, so 2 * 150528 * 4592 / 2^62 = 3.0e-10 and 1e-12 for rounding."""
    assert slack(1.0, 150_528) == pytest.approx(3.0e-10 + 1e-12, rel=0.01)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_noise_that_is_not_positive_is_refused(sigma):
    with pytest.raises(ValueError, match="out of range: sigma="):
        thresholds(sigma)
    with pytest.raises(ValueError, match="out of range: sigma="):
        slack(sigma, 3)
