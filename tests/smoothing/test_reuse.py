"""Certificates from a parent's: the bound by hand and by scipy, and never more errors than alpha."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from hydrabench.smoothing import SHARE, LostVotes, Plan, reuse, sequential
from hydrabench.smoothing.confidence import clopper_pearson_lower

SIGMA = 0.25
GRID = (0.0, 0.25, 0.5)
ALPHA = 0.1


@pytest.fixture(autouse=True, scope="module")
def _remembered_bounds():
    """Thousands of images share few counts: each bound, a function of its arguments, is worked out once."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (sequential, reuse):
            for name in ("clopper_pearson_lower", "clopper_pearson_upper"):
                patch.setattr(module, name, lru_cache(maxsize=None)(getattr(module, name)))
        yield


def threshold(radius):
    """The largest probability that does not deserve `radius`."""
    return NormalDist().cdf(radius / SIGMA)


def test_the_bound_where_nothing_is_lost_worked_by_hand():
    """alpha 0.002, two shares of 0.001. The parent has all of 10,000: L = 0.001^(1/10000) = 0.9993095.

    Looks at 200 and 400 draws with 0.0005 each: nothing lost of 400 leaves z <= 1 - 0.0005^(1/400) = 0.0188229, so
    the child has at least 0.9804866; after 200 draws 0.9993095 - (1 - 0.0005^(1/200)) = 0.9620181.
    """
    parent = clopper_pearson_lower(10_000, 10_000, alpha=0.002 * SHARE)
    assert parent == pytest.approx(0.9993095, abs=1e-7)
    rule = LostVotes(Plan(400, 0.002 * (1 - SHARE), SIGMA, (0.5, 0.53)))
    assert (rule.first, rule.looks.alphas) == (200, (0.0005, 0.0005))
    first = rule.look(200, 0, parent=parent, best=0.0)
    assert first.p_lower == pytest.approx(0.9620181, abs=1e-7)
    assert first.following == 400
    last = rule.look(400, 0, parent=parent, best=first.p_lower)
    assert last.p_lower == pytest.approx(0.9804866, abs=1e-7)
    assert last.following is None


@pytest.mark.parametrize(("count", "lost", "n"), [(950, 3, 400), (1000, 0, 200), (700, 400, 400), (990, 200, 200)])
def test_bounds_agree_with_scipys_exact_intervals(count, lost, n):
    parent = clopper_pearson_lower(count, 1000, alpha=0.01)
    low = binomtest(count, 1000, alternative="greater").proportion_ci(0.99, method="exact").low
    assert parent == pytest.approx(low, rel=1e-9)
    high = binomtest(lost, n, alternative="less").proportion_ci(1 - 0.005, method="exact").high
    assert LostVotes(Plan(400, 0.01, SIGMA, GRID)).bound(n, lost, parent) == pytest.approx(low - high, rel=1e-9)


@given(lost=st.integers(0, 400), parent=st.floats(0, 0.9999), slack=st.floats(0, 0.01))
@settings(max_examples=50)
def test_the_child_never_has_more_than_the_parent_and_less_with_every_vote_lost(lost, parent, slack):
    rule = LostVotes(Plan(400, 0.01, SIGMA, GRID, slack))
    bound = rule.bound(400, lost, parent)
    assert bound < parent - lost / 400 - slack or lost == 400
    assert lost == 0 or bound < rule.bound(400, lost - 1, parent)
    assert rule.look(400, lost, parent=parent, best=0.7).p_lower >= 0.7


def test_draws_stop_once_the_child_has_what_its_parent_has():
    """The parent's 0.9 is worth 0.32 at sigma 0.25: radius 0.25 (0.8413), and 0.5 is not asked of the child."""
    rule = LostVotes(Plan(3200, 0.001, SIGMA, GRID))
    assert rule.look(200, 0, parent=0.9, best=0.0).following is None
    assert rule.look(200, 5, parent=0.9, best=0.0).following == 400
    assert rule.look(200, 150, parent=0.9, best=0.0).following is None, "no radius is within reach"


def simulate(rng, p_child, lost, *, samples=1000, shared=800):
    """One image whose child loses votes and wins none, the worst case. Returns: (bound, bound if U were lost / n)."""
    outcome = rng.choice(3, size=samples, p=[p_child, lost, 1 - p_child - lost])  # kept, lost, not the parent's
    count, lost_votes = int((outcome < 2).sum()), np.cumsum(outcome == 1)
    parent = clopper_pearson_lower(count, samples, alpha=ALPHA * SHARE)
    rule, best, n = LostVotes(Plan(shared, ALPHA * (1 - SHARE), SIGMA, GRID)), 0.0, 200
    while n is not None:
        drawn, gone = n, int(lost_votes[n - 1])
        verdict = rule.look(n, gone, parent=parent, best=best)
        best, n = verdict.p_lower, verdict.following
    return best, min(count / samples - gone / drawn, 1 - 1e-9)


@pytest.mark.parametrize("radius", GRID)
@pytest.mark.parametrize("lost", [0.0, 0.002, 0.02])
def test_false_certificates_at_the_threshold_are_as_rare_as_alpha_promises(lost, radius):
    """Hundreds of images whose child has exactly Phi(radius / sigma), on noise that both bounds share.

    The bound on the count fails by chance once in a million. The difference of the two frequencies alone, which
    the bounds make cautious, would be wrong far more often.
    """
    p, plan, place = max(threshold(radius), 0.5), Plan(1000, ALPHA, SIGMA, GRID), GRID.index(radius)
    rng = np.random.default_rng(int(1000 * (radius + lost)))
    images = 800
    found = [simulate(rng, p, lost) for _ in range(images)]
    limit = binom.ppf(1 - 1e-6, images, ALPHA)
    assert sum(plan.certified(bound) > place for bound, _ in found) <= limit
    assert sum(plan.certified(careless) > place for _, careless in found) > limit
    if radius:
        assert sum(plan.certified(bound) > 0 for bound, _ in found) > 0.85 * images, (
            "sound only because nothing is certified"
        )
