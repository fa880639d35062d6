"""The exact size of the looks: published anchors, and never above alpha for any grid that recipes ask for."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom

import hydrabench
from hydrabench.evaluators import SmoothingSettings
from hydrabench.recipes import load_recipe
from hydrabench.smoothing.sequential import FixedSize, GroupSequential, Plan
from tests.helpers.spending import critical_counts, false_certificate_probability

RECIPES = sorted((Path(hydrabench.__file__).parents[1] / "configs").glob("*.yml"))


def size(rule, radius):
    """The type-I error at a radius."""
    p = max(NormalDist().cdf(radius / rule.plan.sigma), 0.5)
    return false_certificate_probability(rule, radius, p)


@pytest.mark.parametrize(
    ("radius", "last", "published"),
    [(0.0, 50_521, 8.8e-4), (0.25, 84_515, 8.8e-4), (0.5, 97_880, 7.3e-4), (0.75, 99_903, 4.3e-4)],
)
def test_last_critical_counts_and_sizes_are_those_of_the_field_survey(radius, last, published):
    """Survey, section 3.6: its own simulation by dynamic programming, at p = 0.5, 0.841, 0.977 and 0.9987."""
    rule = GroupSequential(Plan(100_000, 0.001, 0.25, (radius,)))
    assert critical_counts(rule, radius)[-1] == last
    assert size(rule, radius) == pytest.approx(published, abs=5e-6)


def shipped_grids():
    """(sigma, samples, alpha, radii) of every smoothing entry of a shipped recipe, and the usual grids."""
    entries = [entry for path in RECIPES for entry in load_recipe(path).evaluate]
    found = {(e.sigma, e.samples, e.alpha, e.radii) for e in entries if isinstance(e, SmoothingSettings)}
    assert found
    for sigma, top in ((0.12, 0.25), (0.25, 0.75), (0.5, 1.75), (1.0, 3.5)):
        found.add((sigma, 100_000, 0.001, tuple(np.arange(0, top + 0.01, 0.25))))
    return sorted(found)


@pytest.mark.parametrize(("sigma", "samples", "alpha", "radii"), shipped_grids(), ids=str)
def test_no_shipped_grid_is_certified_falsely_more_often_than_alpha(sigma, samples, alpha, radii):
    rule = GroupSequential(Plan(samples, alpha, sigma, radii))
    sizes = [size(rule, radius) for radius in radii]
    assert 0 < max(sizes) <= alpha
    assert max(sizes) > alpha / 2, "the budget is not used"


def test_one_look_has_the_size_of_the_binomial_tail():
    rule = GroupSequential(Plan(150, 0.05, 0.25, (0.0,)))
    assert rule.looks == (150,)
    (critical,) = critical_counts(rule, 0.0)
    assert size(rule, 0.0) == pytest.approx(binom.sf(critical - 1, 150, 0.5), rel=1e-9)
    assert FixedSize(rule.plan).look(150, critical, 0.0).p_lower > 0.5


def test_two_looks_agree_with_a_sum_over_all_paths():
    """Looks at 200 and 300: certified at once, or not at once and then at 300."""
    rule = GroupSequential(Plan(300, 0.05, 0.25, (0.0,)))
    early, late = critical_counts(rule, 0.0)
    at_once = binom.sf(early - 1, 200, 0.5)
    later = sum(binom.pmf(k, 200, 0.5) * binom.sf(late - k - 1, 100, 0.5) for k in range(early))
    assert size(rule, 0.0) == pytest.approx(at_once + later, rel=1e-9)


def test_more_votes_are_certified_more_often():
    rule = GroupSequential(Plan(2000, 0.05, 0.25, (0.25,)))
    chances = [false_certificate_probability(rule, 0.25, p) for p in (0.80, 0.84, 0.86, 0.90)]
    assert chances == sorted(chances)
    assert chances[-1] > 0.99
