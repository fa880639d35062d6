"""Certificates from a parent's: the bound by hand and by scipy, and never more errors than alpha."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from hydrabench.smoothing import RULES, LostVotes, Plan, parent_bound, reuse, rule_again, sequential, shares
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
    split = shares(0.002, direct=False)
    assert split == (0.001, 0.001, 0.0)
    plan = Plan(10_000, split.parent, SIGMA, GRID)
    parent = parent_bound(RULES["cohen"](plan), [(10_000, 10_000)])
    assert parent == pytest.approx(0.9993095, abs=1e-7)
    rule = LostVotes(Plan(400, split.lost, SIGMA, (0.5, 0.53)))
    assert (rule.first, rule.looks.alphas) == (200, (0.0005, 0.0005))
    first = rule.look(200, 0, parent=parent, best=0.0)
    assert first.p_lower == pytest.approx(0.9620181, abs=1e-7)
    assert first.following == 400
    last = rule.look(400, 0, parent=parent, best=first.p_lower)
    assert last.p_lower == pytest.approx(0.9804866, abs=1e-7)
    assert last.following is None


def test_three_shares_if_images_may_be_certified_directly():
    assert shares(0.3, direct=True) == pytest.approx((0.1, 0.1, 0.1))
    assert sum(shares(0.001, direct=True)) == pytest.approx(0.001)


@pytest.mark.parametrize(("count", "lost", "n"), [(950, 3, 400), (1000, 0, 200), (700, 400, 400), (990, 200, 200)])
def test_bounds_agree_with_scipys_exact_intervals(count, lost, n):
    parent = parent_bound(RULES["cohen"](Plan(1000, 0.01, SIGMA, ())), [(1000, count)])
    low = binomtest(count, 1000, alternative="greater").proportion_ci(0.99, method="exact").low
    assert parent == pytest.approx(low, rel=1e-9)
    high = binomtest(lost, n, alternative="less").proportion_ci(1 - 0.005, method="exact").high
    assert LostVotes(Plan(400, 0.01, SIGMA, GRID)).bound(n, lost, parent) == pytest.approx(low - high, rel=1e-9)


@given(lost=st.integers(0, 400), parent=st.floats(0, 0.9999), slack=st.floats(0, 0.01))
@settings(deadline=None, max_examples=50)
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
    assert rule.falls_short(0.9, 0.84)
    assert not rule.falls_short(0.9, 0.85)
    assert rule.falls_short(0.45, 0.0)


@pytest.mark.parametrize("mode", ["adaptive", "betting", "curtailed"])
def test_a_parent_that_stopped_early_is_judged_again_by_all_its_looks(mode):
    """At a smaller alpha the bound falls; at the alpha that it was made with it is the one of the ledger."""
    plan = Plan(2000, 0.05, SIGMA, GRID)
    rule, votes, looks, best = RULES[mode](plan), np.random.default_rng(4).random(2000) < 0.93, [], 0.0
    n = rule.first
    while n is not None:
        looks.append((n, int(votes[:n].sum())))
        verdict = rule.look(*looks[-1], best)
        best, n = verdict.p_lower, verdict.following
    assert parent_bound(rule, looks) == best > 0.5
    stricter = rule_again(mode, 3)(Plan(2000, 0.025, SIGMA, ()))
    assert 0.5 < parent_bound(stricter, looks) < best


def simulate(rng, mode, p_child, lost, *, samples=1000, shared=800):
    """One image whose child loses votes and wins none, the worst case. Returns: (bound, bound if U were lost / n)."""
    outcome = rng.choice(3, size=samples, p=[p_child, lost, 1 - p_child - lost])  # kept, lost, not the parent's
    parent_votes, lost_votes = np.cumsum(outcome < 2), np.cumsum(outcome == 1)
    split = shares(ALPHA, direct=False)
    first = RULES[mode](Plan(samples, ALPHA, SIGMA, GRID))
    looks, best, n = [], 0.0, first.first
    while n is not None:
        looks.append((n, int(parent_votes[n - 1])))
        verdict = first.look(*looks[-1], best)
        best, n = verdict.p_lower, verdict.following
    parent = parent_bound(rule_again(mode, 3)(Plan(samples, split.parent, SIGMA, ())), looks)
    rule, best, n = LostVotes(Plan(shared, split.lost, SIGMA, GRID)), 0.0, 200
    while n is not None:
        drawn, gone = n, int(lost_votes[n - 1])
        verdict = rule.look(n, gone, parent=parent, best=best)
        best, n = verdict.p_lower, verdict.following
    return best, min(looks[-1][1] / looks[-1][0] - gone / drawn, 1 - 1e-9)


@pytest.mark.parametrize("radius", GRID)
@pytest.mark.parametrize("lost", [0.0, 0.002, 0.02])
@pytest.mark.parametrize("mode", ["cohen", "adaptive"])
def test_false_certificates_at_the_threshold_are_as_rare_as_alpha_promises(mode, lost, radius):
    """Hundreds of images whose child has exactly Phi(radius / sigma), on noise that both bounds share.

    The bound on the count fails by chance once in a million. The difference of the two frequencies alone, which
    the bounds make cautious, would be wrong far more often.
    """
    p, plan, place = max(threshold(radius), 0.5), Plan(1000, ALPHA, SIGMA, GRID), GRID.index(radius)
    rng = np.random.default_rng(int(1000 * (radius + lost)))
    images = 800 if mode == "cohen" else 300
    found = [simulate(rng, mode, p, lost) for _ in range(images)]
    limit = binom.ppf(1 - 1e-6, images, ALPHA)
    assert sum(plan.certified(bound) > place for bound, _ in found) <= limit
    assert sum(plan.certified(careless) > place for _, careless in found) > limit
    if radius:
        assert sum(plan.certified(bound) > 0 for bound, _ in found) > 0.85 * images, (
            "sound only because nothing is certified"
        )


def test_choosing_direct_certification_by_the_parents_abstention_needs_a_share_of_its_own():
    """The child is the parent, p = 1/2, so every certificate is false; N = M = 100,000, alpha = 0.05.

    Half of alpha each for parent and lost votes, all of it for fresh draws if the parent abstains: 0.024 + 0.976 *
    0.05 = 0.07. With a third each: below alpha.
    """

    def failure(alpha, a, b, d):
        n = 100_000
        counts = np.arange(n // 2, n // 2 + 1000)
        least = {
            level: next(k for k in counts if clopper_pearson_lower(int(k), n, alpha=a_) > limit)
            for level, (a_, limit) in {
                "reused": (a, 0.5 + 1 - b ** (1 / n)),
                "open": (a, 0.5),
                "direct": (d, 0.5),
            }.items()
        }
        tail = {level: binom.sf(k - 1, n, 0.5) for level, k in least.items()}
        return tail["reused"] + (1 - tail["open"]) * tail["direct"]

    assert failure(0.05, 0.025, 0.025, 0.05) > 0.07
    assert failure(0.05, *shares(0.05, direct=True)) < 0.05
