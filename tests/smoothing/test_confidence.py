"""Confidence bounds and radii against other implementations, and how often they are wrong."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

import hydrabench.smoothing.confidence as module
from hydrabench.smoothing import certified_radius, clopper_pearson_lower
from hydrabench.smoothing.confidence import (
    clopper_pearson_upper,
    prediction_p_value,
    randomized_lower,
)


def test_the_largest_radius_of_cohens_setting():
    """All of N agree: p_lower = alpha^(1/N) = 0.001^(1/100000) = 0.99993092, and 0.25 * 3.8114 = 0.95286."""
    assert clopper_pearson_lower(100_000, 100_000, alpha=0.001) == pytest.approx(0.001 ** (1 / 100_000), rel=1e-12)
    assert certified_radius(100_000, 100_000, alpha=0.001, sigma=0.25) == pytest.approx(0.95286, abs=5e-6)


def test_one_draw_worked_by_hand():
    """One success in one draw: the p with p^1 = alpha, so 0.05; none: 0."""
    assert clopper_pearson_lower(1, 1, alpha=0.05) == pytest.approx(0.05)
    assert clopper_pearson_lower(0, 1, alpha=0.05) == 0.0


@given(n=st.integers(1, 100_000), share=st.floats(0, 1), alpha=st.sampled_from([1e-5, 0.001, 0.05, 0.3, 0.9]))
@settings(max_examples=40)
def test_bound_agrees_with_scipys_exact_interval(n, share, alpha):
    count = round(share * n)
    interval = binomtest(count, n, alternative="greater").proportion_ci(1 - alpha, method="exact")
    assert clopper_pearson_lower(count, n, alpha=alpha) == pytest.approx(interval.low, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("count", [51_000, 60_000, 99_000, 99_999])
def test_radius_agrees_with_scipys_exact_interval(count):
    p = binomtest(count, 100_000, alternative="greater").proportion_ci(0.999, method="exact").low
    assert certified_radius(count, 100_000, alpha=0.001, sigma=1.0) == pytest.approx(norm.ppf(p))


@given(n=st.integers(1, 3000), share=st.floats(0, 1), sigma=st.floats(0.05, 2))
@settings(max_examples=40)
def test_it_abstains_exactly_where_the_bound_does_not_exceed_one_half(n, share, sigma):
    count = round(share * n)
    radius = certified_radius(count, n, alpha=0.01, sigma=sigma)
    p_lower = clopper_pearson_lower(count, n, alpha=0.01)
    assert (radius is None) == (p_lower <= 0.5)
    if radius is not None:
        assert 0 < radius < math.inf
        assert norm.cdf(radius / sigma) == pytest.approx(p_lower)


def test_a_bare_majority_abstains():
    """A fair coin gives 55 or more of 100 with probability 0.18, so 55 proves nothing at alpha = 0.001."""
    assert certified_radius(55, 100, alpha=0.001, sigma=1.0) is None
    assert certified_radius(90, 100, alpha=0.001, sigma=1.0) is not None


@given(n=st.integers(2, 2000), share=st.floats(0, 0.99))
@settings(max_examples=30)
def test_more_votes_never_lower_the_bound(n, share):
    count = min(int(share * n), n - 1)
    assert clopper_pearson_lower(count, n, alpha=0.01) < clopper_pearson_lower(count + 1, n, alpha=0.01)


@pytest.mark.parametrize(("p", "n", "alpha"), [(0.5, 100, 0.001), (0.7, 60, 0.05), (0.99, 700, 0.01)])
def test_the_bound_exceeds_the_truth_with_probability_at_most_alpha(p, n, alpha):
    """Exactly: add the binomial probabilities of the counts whose bound lies above p."""
    wrong = [count for count in range(n + 1) if clopper_pearson_lower(count, n, alpha=alpha) > p]
    probability = binom.pmf(wrong, n, p).sum()
    assert 0 < probability <= alpha
    assert probability + binom.pmf(min(wrong) - 1, n, p) > alpha, "one count more and it would still hold: too cautious"


def test_false_certificates_are_as_rare_as_alpha_promises():
    """20,000 simulated images whose true radius is sigma * Phi^-1(0.7), N = 200, alpha = 0.05."""
    n, alpha, trials, truth = 200, 0.05, 20_000, norm.ppf(0.7)
    radii = [certified_radius(count, n, alpha=alpha, sigma=1.0) or 0.0 for count in range(n + 1)]
    counts = np.random.default_rng(0).binomial(n, 0.7, size=trials)
    false = sum(radii[count] > truth for count in counts)
    assert 0 < false <= binom.ppf(1 - 1e-6, trials, alpha)


@pytest.mark.parametrize(
    "arguments",
    [
        {"count": -1, "n": 10, "alpha": 0.1},
        {"count": 11, "n": 10, "alpha": 0.1},
        {"count": 0, "n": 0, "alpha": 0.1},
        {"count": 1, "n": 10, "alpha": 0.0},
        {"count": 1, "n": 10, "alpha": 1.0},
        {"count": 1, "n": 10, "alpha": math.nan},
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="out of range: count="):
        clopper_pearson_lower(**arguments)
    with pytest.raises(ValueError, match="out of range: count="):
        certified_radius(**arguments, sigma=1.0)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_a_noise_that_is_not_positive_is_refused(sigma):
    with pytest.raises(ValueError, match="out of range: sigma="):
        certified_radius(9, 10, alpha=0.1, sigma=sigma)


def test_the_module_needs_no_torch_and_loads_its_statistics_late():
    program = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('c', sys.argv[1]); m = u.module_from_spec(s);"
        "s.loader.exec_module(m); assert not {'torch', 'scipy', 'statsmodels'} & set(sys.modules);"
        "m.certified_radius(9, 10, alpha=0.1, sigma=1.0);"
        "assert 'statsmodels' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, module.__file__], check=True)


def test_the_upper_bound_mirrors_the_lower_one():
    """No success in one draw: the p with (1 - p)^1 = alpha, so 0.95; all: 1."""
    assert clopper_pearson_upper(0, 1, alpha=0.05) == pytest.approx(0.95)
    assert clopper_pearson_upper(7, 7, alpha=0.05) == 1.0
    interval = binomtest(30, 100, alternative="less").proportion_ci(0.95, method="exact")
    assert clopper_pearson_upper(30, 100, alpha=0.05) == pytest.approx(interval.high)


@pytest.mark.parametrize(
    ("count", "n", "uniform", "bound"),
    [
        (95, 100, 0.5, 0.8501328046),
        (95, 100, 1e-12, 0.8598346231),
        (95, 100, 1, 0.8446326942),
        (100, 100, 0.5, 0.9397455978),
        (100, 100, 1, 0.9332543008),
        (99_000, 100_000, 0.5, 0.9889944544),
        (99_000, 100_000, 1, 0.9889893404),
        (0, 100, 1e-4, 1 - (0.999 / (1 - 1e-4)) ** 0.01),
        (0, 100, 0.5, 0.0),
    ],
)
def test_randomized_bounds_are_those_of_the_methods_survey(count, n, uniform, bound):
    """Reference on smoothing, section 3.2, at alpha 0.001: scipy's; closed forms where no draw or every draw agrees."""
    found = randomized_lower(count, n, alpha=0.001, uniform=uniform)
    assert found == pytest.approx(bound, abs=2e-10)
    assert found >= clopper_pearson_lower(count, n, alpha=0.001) - 1e-12


@pytest.mark.parametrize("p", [0.5, 0.7, 0.93, 0.999])
@pytest.mark.parametrize("n", [1, 7, 30])
def test_randomized_bounds_exceed_the_truth_exactly_as_often_as_alpha_says(n, p):
    """Summed over all counts and 2,000 values of U; the bound of Clopper and Pearson does so at most as often."""
    alpha, values = 0.05, (np.arange(2000) + 0.5) / 2000
    exceeding = 0.0
    for count in range(n + 1):
        low, high = (randomized_lower(count, n, alpha=alpha, uniform=u) for u in (1, 1e-12))
        share = (
            float(low > p)
            if (low > p) == (high > p)
            else np.mean([randomized_lower(count, n, alpha=alpha, uniform=u) > p for u in values])
        )
        exceeding += share * binom.pmf(count, n, p)
    assert exceeding == pytest.approx(alpha, abs=1 / 2000)


@pytest.mark.parametrize("uniform", [0, -0.1, 1.1])
def test_numbers_outside_the_unit_interval_are_refused(uniform):
    with pytest.raises(ValueError, match=r"out of range: .*uniform="):
        randomized_lower(5, 10, alpha=0.1, uniform=uniform)


def test_prediction_p_values_worked_by_hand():
    """3 to 0: 2 / 2^3; 2 to 1: every split of 3 is at least as uneven; and PREDICT's usual case against SciPy."""
    assert prediction_p_value(3, 0) == pytest.approx(0.25)
    assert prediction_p_value(2, 1) == 1.0
    assert prediction_p_value(560, 440) == pytest.approx(binomtest(560, 1000, 0.5).pvalue)
    for top, second in ((1, 2), (0, 0), (1, -1)):
        with pytest.raises(ValueError, match="out of range: top="):
            prediction_p_value(top, second)
