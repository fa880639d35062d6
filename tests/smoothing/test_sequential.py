"""Stopping rules on synthetic counts: same verdicts where promised, never more errors than alpha."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from hydrabench.smoothing import sequential
from hydrabench.smoothing.rules import RULES
from hydrabench.smoothing.sequential import FixedSize, GroupSequential, Plan

SIGMA = 0.25
GRID = (0.0, 0.25, 0.5)
SMALL = Plan(samples=1000, alpha=0.05, sigma=SIGMA, radii=GRID)


def threshold(radius):
    """The largest probability that does not deserve `radius`."""
    return NormalDist().cdf(radius / SIGMA)


@pytest.fixture(autouse=True, scope="module")
def _remembered_bounds():
    """Thousands of images share few counts: each bound, a function of its arguments, is worked out once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("clopper_pearson_lower", "clopper_pearson_upper"):
            patch.setattr(sequential, name, lru_cache(maxsize=None)(getattr(sequential, name)))
        yield


def run(rule, votes):
    """Feed one image's draws, 0 or 1 each, to a rule. Returns: draws, count, final bound."""
    total = np.concatenate([[0], np.cumsum(votes)])
    n, best = rule.first, 0.0
    while True:
        verdict = rule.look(n, int(total[n]), best)
        assert verdict.p_lower >= best
        if verdict.following is None:
            return n, int(total[n]), verdict.p_lower
        assert n < verdict.following <= len(votes)
        n, best = verdict.following, verdict.p_lower


def test_looks_and_shares_of_the_union_bound_at_cohens_setting():
    """200 doubled eight times is 51,200, then N; nine early looks share alpha / 2, so 0.001 / 18 each."""
    rule = GroupSequential(Plan(100_000, 0.001, SIGMA, GRID))
    assert rule.looks == (200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 100_000)
    assert rule.alphas == (*[0.001 / 18] * 9, 0.0005)
    assert sum(rule.alphas) == pytest.approx(0.001)
    assert rule.alpha_spent(400) == pytest.approx(0.002 / 18)
    assert rule.alpha_spent(100_000) == pytest.approx(0.001)


@pytest.mark.parametrize("samples", [1, 100, 199, 200, 201, 400, 1000])
def test_looks_rise_and_end_at_all_draws(samples):
    rule = GroupSequential(Plan(samples, 0.001, SIGMA, GRID))
    assert list(rule.looks) == sorted(set(rule.looks))
    assert rule.looks[-1] == samples
    assert rule.alpha_spent(samples) == pytest.approx(0.001)


def test_the_first_look_of_the_union_bound_worked_by_hand():
    """All 200 agree: (0.001 / 18)^(1/200) = exp(-9.798 / 200) = 0.9522, 1.667 deviations, 0.4168 at sigma 0.25:
    radius 0.25 is certified. The upper bound is 1, so 0.5 is within reach and the rule goes on."""
    rule = GroupSequential(Plan(100_000, 0.001, SIGMA, (0.25, 0.5)))
    verdict = rule.look(200, 200, 0.0)
    assert verdict.p_lower == pytest.approx((0.001 / 18) ** (1 / 200))
    assert verdict.following == 400
    assert GroupSequential(Plan(100_000, 0.001, SIGMA, (0.25,))).look(200, 200, 0.0).following is None


def test_a_hopeless_image_is_given_up_at_the_first_look_and_claims_nothing():
    """100 of 200: one half is far below Phi(0.25 / 0.25) = 0.84."""
    verdict = GroupSequential(Plan(100_000, 0.001, SIGMA, (0.25,))).look(200, 100, 0.0)
    assert verdict.following is None
    assert verdict.p_lower < 0.5


@pytest.mark.parametrize("radius", GRID)
@pytest.mark.parametrize("mode", RULES)
def test_false_certificates_at_the_threshold_are_as_rare_as_alpha_promises(mode, radius):
    """3,000 images whose probability is exactly Phi(radius / sigma); at most alpha may be certified at the radius.

    The bound on the count fails by chance once in a million.
    """
    p = max(threshold(radius), 0.5)
    rng = np.random.default_rng(int(1000 * radius))
    rule = RULES[mode](SMALL)
    place = GRID.index(radius)
    false = sum(SMALL.certified(run(rule, rng.random(1000) < p)[2]) > place for _ in range(3000))
    assert false <= binom.ppf(1 - 1e-6, 3000, 0.05)
    assert false > 3000 * 0.05 / 4, "far rarer than alpha: the rule wastes its budget"


@pytest.mark.parametrize("kind", [GroupSequential, RULES["adaptive"]])
def test_fewer_draws_are_spent_than_all_where_the_verdict_is_clear(kind):
    rng = np.random.default_rng(1)
    rule = kind(SMALL)
    drawn = [run(rule, rng.random(1000) < p)[0] for p in (0.2, 0.3, 0.45, 0.9, 0.99999) for _ in range(20)]
    assert np.mean(drawn) < 0.9 * 1000


@pytest.mark.parametrize("samples", [1000, 100_000])
def test_the_union_bound_never_exceeds_the_largest_radius_of_its_look(samples):
    """All agree at look j: alpha_j^(1/n_j); the running maximum of earlier looks is smaller."""
    rule, best = GroupSequential(Plan(samples, 0.001, SIGMA, (9.0,))), 0.0
    for n, share in zip(rule.looks, rule.alphas, strict=True):
        largest = share ** (1 / n)
        assert rule.bound(n, n) == pytest.approx(largest, rel=1e-12)
        best = rule.look(n, n, best).p_lower
        assert best <= largest * (1 + 1e-12)


@given(n=st.integers(0, 9), share=st.floats(0, 1), slack=st.floats(0, 0.01))
@settings(max_examples=40)
def test_slack_is_taken_off_every_bound(n, share, slack):
    for kind in (FixedSize, GroupSequential):
        exact, careful = (kind(Plan(100_000, 0.001, SIGMA, GRID, off)) for off in (0.0, slack))
        draws = 100_000 if kind is FixedSize else exact.looks[n]
        count = round(share * draws)
        bounds = [rule.look(draws, count, 0.0).p_lower for rule in (exact, careful)]
        assert bounds[1] == pytest.approx(max(bounds[0] - slack, 0.0))
