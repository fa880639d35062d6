"""Exact boundaries: golden counts, type I error against other ways of computing it, and what a rule claims."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from hydrabench.laws import LAWS, radius_of
from hydrabench.smoothing.boundaries import RESIGN, SPARSE_LOOKS, ExactSequential, _binomial, boundary
from hydrabench.smoothing.confidence import clopper_pearson_lower
from hydrabench.smoothing.rules import rule_of
from hydrabench.smoothing.sequential import Plan
from tests.helpers.spending import crossing_probability

SIGMA = 0.25
PHI = NormalDist().cdf


def survey_looks(samples):
    """200, then 100 or a quarter more, then N; half of 0.001 for the last look."""
    looks = [200]
    while looks[-1] < samples:
        looks.append(max(looks[-1] + 100, round(looks[-1] * 1.25 / 100) * 100))
    looks = (*(n for n in looks if n < samples), samples)
    return looks, (*[0.0005 / (len(looks) - 1)] * (len(looks) - 1), 0.0005)


@pytest.mark.parametrize(
    ("samples", "deviations", "early", "last", "used"),
    [
        (1000, 0, (127, 183, 237, 291, 345, 452), 552, 9.249419e-4),
        (1000, 1, (187, 275, 362, 450, 536, 710), 878, 9.819456e-4),
        (1000, 2, (201, 301, 400, 499, 598, 795), 992, 6.669668e-4),
        (10_000, 0, (129, 185, 240, 294, 348, 456, 562), 5163, 9.868349e-4),
        (10_000, 1, (188, 276, 364, 452, 538, 713, 885), 8532, 9.659685e-4),
        (100_000, 0, (), 50_517, 9.8992e-4),
        (100_000, 1, (), 84_511, 9.9476e-4),
        (100_000, 2, (), 97_878, 9.8880e-4),
    ],
)
def test_counts_and_type_i_errors_are_those_of_the_methods_survey(samples, deviations, early, last, used):
    """Reference on smoothing, section 3.1: its own programme in scipy."""
    found = boundary(PHI(deviations), *survey_looks(samples))
    assert found.counts[: len(early)] == early
    assert found.counts[-1] == last
    assert found.used == pytest.approx(used, rel=1e-5)


def test_two_looks_worked_by_hand_in_fractions():
    """A fair coin, 1/40 at 10 and at 20 tosses: 9 of 10 has 11/1024 (8 has 56/1024), and then 15 of 20."""
    found = boundary(0.5, (10, 20), (1 / 40, 1 / 40))
    assert found.counts == (9, 15)
    assert found.used == pytest.approx(14233 / 524288, rel=1e-8)


def test_a_look_that_cannot_claim_leaves_its_share_to_the_next():
    """0.75^10 = 0.056 > 1/80: even ten of ten prove nothing."""
    found = boundary(0.75, (10, 20, 40), (1 / 80, 1 / 80, 1 / 40))
    assert found.counts == (11, 19, 36)
    assert found.used == pytest.approx(0.0342791974, rel=1e-8)


@pytest.mark.parametrize("p", [Fraction(1, 2), Fraction(3, 4), Fraction(9, 10)])
@pytest.mark.parametrize("looks", [(14,), (5, 9, 14), (3, 4, 12, 13, 14)])
def test_the_type_i_error_is_that_of_all_sequences_of_draws(p, looks):
    """All 2^14 sequences, in fractions: at most alpha, and any smaller count of any look would exceed its share."""
    shares = (0.1 / len(looks),) * len(looks)
    found = boundary(float(p), looks, shares)
    totals = np.cumsum(list(product((0, 1), repeat=looks[-1])), axis=1)
    weights = [p ** int(ones) * (1 - p) ** int(looks[-1] - ones) for ones in totals[:, -1]]

    def error(counts):
        crossed = np.any([totals[:, n - 1] >= c for n, c in zip(looks, counts, strict=True)], axis=0)
        return sum((weight for weight, hit in zip(weights, crossed, strict=True) if hit), Fraction(0))

    assert float(error(found.counts)) == pytest.approx(found.used, rel=1e-7)
    assert error(found.counts) <= sum(map(Fraction, shares))
    for at in range(len(looks)):
        until = found.counts[: at + 1]
        tempted = (*until[:-1], until[-1] - 1, *(n + 1 for n in looks[at + 1 :]))
        assert error(tempted) > sum(map(Fraction, shares[: at + 1]))


@given(
    draws=st.integers(1, 20_000),
    p=st.floats(1e-6, 1 - 1e-6),
    neglected=st.sampled_from([1e-6, 1e-15, 1e-42]),
)
@settings(max_examples=50)
def test_probabilities_of_counts_are_those_of_scipy_and_no_more_than_is_said_lies_outside(draws, p, neglected):
    first, mass, outside = _binomial(draws, p, neglected)
    counts = np.arange(first, first + len(mass))
    expected = binom.pmf(counts, draws, p)
    np.testing.assert_allclose(mass, expected, rtol=1e-9 + 2 * neglected, atol=1e-60)  # all of them add up to 1
    beyond = binom.cdf(first - 1, draws, p) + binom.sf(counts[-1], draws, p)
    assert beyond <= outside * (1 + 1e-9)
    assert (outside > 0) == (len(mass) <= draws)


radii_of = st.lists(st.floats(0, 4 * SIGMA), min_size=1, max_size=5, unique=True).map(lambda r: tuple(sorted(r)))
plans = st.builds(
    Plan,
    samples=st.sampled_from([1, 15, 16, 17, 100, 777]),
    alpha=st.sampled_from([0.2, 0.05, 0.001, 1e-9, 1e-30]),
    sigma=st.just(SIGMA),
    radii=radii_of,
    slack=st.sampled_from([0.0, 0.003]),
    tolerance=st.sampled_from([None, 0.05]),
    law=st.sampled_from(list(LAWS)),
)


@given(plan=plans)
@settings(max_examples=15)
def test_no_threshold_is_claimed_falsely_more_often_than_alpha(plan):
    """By another programme, for every threshold that a rule claims, at the largest probability that must not be."""
    rule = ExactSequential(plan)
    assert list(rule.looks) == sorted(set(rule.looks))
    assert rule.looks[-1] == plan.samples
    assert list(rule.thresholds) == sorted(set(rule.thresholds))
    for threshold, counts in zip(rule.thresholds, rule.claims, strict=True):
        assert crossing_probability(rule.looks, counts, threshold) <= plan.alpha
    assert rule.alpha_spent(plan.samples) <= plan.alpha * (1 + 1e-12)


@given(plan=plans)
@settings(max_examples=15)
def test_a_claimed_radius_is_certified_by_the_bound_that_claims_it(plan):
    """In rounded numbers too, and a look with all draws agreeing certifies no more than Clopper-Pearson."""
    rule = ExactSequential(plan)
    for radius, place in zip(plan.radii, rule.asked, strict=True):
        if place < len(rule.lower):
            asked = LAWS[plan.law].probability(radius, SIGMA) + plan.slack
            assert plan.radius(rule.lower[place]) >= radius
            assert asked <= rule.thresholds[place] < asked + 1e-12
    best = rule.look(plan.samples, plan.samples, 0.0).p_lower
    assert best <= clopper_pearson_lower(plan.samples, plan.samples, alpha=plan.alpha) - plan.slack or best == 0


@pytest.mark.parametrize(("version", "part", "gap"), [(4, 1 / 4, 1.4), (5, 1 / 5, 1.25)])
def test_a_look_stands_where_all_draws_agreeing_first_claims_each_radius(version, part, gap):
    """One draw fewer would not do, with the share of alpha that the look has."""
    rule = rule_of("adaptive", version)(Plan(100_000, 0.001, SIGMA, (0.0, 0.25, 0.5, 0.75)))
    for place in rule.asked:
        first = next(n for n, c in zip(rule.looks, rule.claims[place], strict=True) if c <= n)
        share = next(share for share in rule.shares(rule.thresholds[place]) if share)
        assert share == pytest.approx(0.001 * part)
        needed = math.log(share) / math.log(rule.thresholds[place])
        assert needed <= first <= needed + 1.0001
    gaps = np.array(rule.looks[1:]) / np.array(rule.looks[:-1])
    assert gaps.max() < gap


def test_hopeless_and_settled_images_stop_at_once():
    rule = ExactSequential(Plan(100_000, 0.001, SIGMA, (0.5,)))
    assert rule.look(16, 3, 0.0).following is None, "one half is far below Phi(2)"
    assert rule.look(16, 16, 0.0).following == 18
    n = next(n for n, c in zip(rule.looks, rule.claims[rule.asked[0]], strict=True) if c <= n)
    verdict = rule.look(n, n, 0.0)
    assert verdict.following is None
    assert verdict.p_lower >= PHI(2)


def test_a_radius_that_no_count_certifies_is_given_up_at_the_first_look():
    rule = ExactSequential(Plan(1000, 0.05, SIGMA, (9.0,)))
    assert rule.look(rule.first, rule.first, 0.0).following is None
    near = ExactSequential(Plan(1000, 0.05, SIGMA, (1.2,)))  # Phi(4.8) needs more draws than there are
    assert near.look(near.first, near.first, 0.0).following is None


@pytest.mark.parametrize("samples", [100, 10_000])
def test_a_class_that_all_draws_claim_half_of_the_time_is_rarely_given_up(samples):
    """By another programme, for votes of other classes. Before version 5 less of RESIGN was used."""
    plan = Plan(samples, 0.001, SIGMA, (0.0, 0.25))
    used = []
    for version in (4, 5):
        rule = rule_of("adaptive", version)(plan)
        for place in rule.asked:
            likely = rule.claims[place][-1] / samples
            given = np.array(rule.looks) - rule._hardly(np.array(rule.looks), likely)
            used.append(crossing_probability(rule.looks[:-1], given[:-1], 1 - likely))
    assert max(used) <= RESIGN
    assert max(used[:2]) < min(used[2:])


def test_denser_looks_take_fewer_draws_and_certify_as_much():
    """4,000 images of probabilities near 1; the bound of each is that of the same votes."""
    plan, rng = Plan(10_000, 0.001, SIGMA, (0.0, 0.25, 0.5, 0.75)), np.random.default_rng(4)
    rules = {version: rule_of("adaptive", version)(plan) for version in (4, 5)}
    assert rules[4].spacing == SPARSE_LOOKS
    looks = sorted(set(rules[4].looks) | set(rules[5].looks))
    draws, certified = {4: 0, 5: 0}, {4: 0, 5: 0}
    for _ in range(4000):
        votes = np.zeros(10_000, dtype=int)
        votes[np.array(looks) - 1] = np.cumsum(rng.binomial(np.diff((0, *looks)), 1 - 10 ** rng.uniform(-5, 0)))
        for version, rule in rules.items():
            drawn, bound = counted(rule, votes)
            draws[version] += drawn
            certified[version] += plan.certified(bound)
    assert draws[5] < 0.98 * draws[4]
    assert abs(certified[5] - certified[4]) <= 0.003 * 4 * 4000


def counted(rule, votes):
    """Run a rule on the cumulated votes of one image. Returns: draws, bound."""
    n, best = rule.first, 0.0
    while True:
        verdict = rule.look(n, int(votes[n - 1]), best)
        assert verdict.p_lower >= best
        if verdict.following is None:
            return n, verdict.p_lower
        n, best = verdict.following, verdict.p_lower


@pytest.mark.parametrize("place", [0, 1, 2])
def test_false_certificates_beside_the_truth_are_as_rare_as_alpha_promises(place):
    """4,000 images just below a threshold, alpha 0.05: any bound above the truth is false.

    The count exceeds its limit by chance once in a million. Far fewer would mean that the budget is wasted.
    """
    rule = ExactSequential(Plan(1000, 0.05, SIGMA, (0.0, 0.25, 0.5)))
    rng = np.random.default_rng(place)
    p = rule.thresholds[rule.asked[place]]
    false = sum(counted(rule, np.cumsum(rng.random(1000) < p))[1] >= p - 1e-12 for _ in range(4000))
    assert 4000 * 0.05 / 4 < false <= binom.ppf(1 - 1e-6, 4000, 0.05)


def test_certified_accuracy_is_cohens_within_three_tenths_of_a_point_with_half_the_draws():
    """4,000 images whose probabilities are spread as a classifier's are: many near 1, the rest anywhere."""
    plan = Plan(10_000, 0.001, SIGMA, (0.0, 0.25, 0.5, 0.75))
    rule, rng = ExactSequential(plan), np.random.default_rng(3)
    needed = [
        next(c for c in range(int(binom.ppf(0.998, 10_000, PHI(r / SIGMA))), 10_001) if claims(plan, c, r))
        for r in plan.radii
    ]
    found, full, drawn = np.zeros(4), np.zeros(4), []
    for _ in range(4000):
        p = 1 - 10 ** rng.uniform(-5, 0)
        votes = np.zeros(10_000, dtype=int)
        votes[np.array(rule.looks) - 1] = np.cumsum(rng.binomial(np.diff((0, *rule.looks)), p))
        draws, bound = counted(rule, votes)
        found += np.arange(4) < plan.certified(bound)
        full += votes[-1] >= np.array(needed)
        drawn.append(draws)
    assert np.abs(found - full).max() / 4000 <= 0.003
    assert np.mean(drawn) < 10_000 / 2


@pytest.mark.parametrize("tolerance", [0.04, 0.1])
def test_more_draws_would_not_have_raised_the_radius_by_more_than_the_tolerance(tolerance):
    """1,000 images of any probability: the bound when draws stop, beside that of all N on the same draws.

    The rule gives a radius up where N draws hardly claim it, so one image in a hundred may lose more.
    """
    plan = Plan(10_000, 0.001, SIGMA, (0.0, 0.25), tolerance=tolerance)
    rule, rng = ExactSequential(plan), np.random.default_rng(5)
    lost, drawn = [], []
    for _ in range(1000):
        votes = np.zeros(10_000, dtype=int)
        increments = rng.binomial(np.diff((0, *rule.looks)), 1 - 10 ** rng.uniform(-4, 0))
        votes[np.array(rule.looks) - 1] = np.cumsum(increments)
        draws, bound = counted(rule, votes)
        best = 0.0
        for n in rule.looks:
            best = max(best, rule.look(n, int(votes[n - 1]), best).p_lower)
        full, stopped = ((radius_of(p, sigma=SIGMA) or 0.0) for p in (best, bound))
        lost.append(full - stopped)
        drawn.append(draws)
    assert min(lost) >= 0
    assert max(lost) > tolerance / 3
    assert np.mean(np.array(lost) > tolerance) < 0.01
    assert np.mean(drawn) < 10_000 * 0.95


def test_a_finer_tolerance_takes_more_draws_and_no_tolerance_the_fewest():
    votes = np.cumsum(np.random.default_rng(1).random(10_000) < 0.97)
    plan = Plan(10_000, 0.001, SIGMA, (0.25,))
    drawn = [counted(ExactSequential(replace(plan, tolerance=t)), votes)[0] for t in (None, 0.2, 0.05, 0.02)]
    assert drawn == sorted(drawn)
    assert drawn[0] < drawn[-1]


def claims(plan, count, radius):
    """Whether Cohen's bound of N draws certifies the radius."""
    bound = clopper_pearson_lower(count, plan.samples, alpha=plan.alpha)
    return (radius_of(bound, sigma=SIGMA) or -1.0) >= radius
