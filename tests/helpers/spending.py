"""How often a rule with fixed looks claims too much, by a binomial programme of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from hydrabench.smoothing.sequential import GroupSequential, Plan

DEVIATIONS = 14.0  # the binomial mass further out is below 1e-38


def critical_counts(rule: GroupSequential, radius: float) -> tuple[int, ...]:
    """For each look, the least count whose bound certifies `radius`; one more than its draws if none does."""
    single = Plan(rule.plan.samples, rule.plan.alpha, rule.plan.sigma, (radius,), rule.plan.slack)
    found = []
    for n in rule.looks:
        low, high = 0, n + 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if single.certified(rule.bound(n, middle)) else (middle + 1, high)
        found.append(low)
    return tuple(found)


def false_certificate_probability(rule: GroupSequential, radius: float, p: float) -> float:
    """Probability that `radius` is ever certified, if the selected class has probability `p`."""
    return crossing_probability(rule.looks, critical_counts(rule, radius), p)


def crossing_probability(looks: Sequence[int], counts: Sequence[int], p: float) -> float:
    """Probability that the count reaches the critical one at any look: exact but for a mass below 1e-30.

    The distribution of the count among the images that have not been certified yet, convolved with the draws until
    the next look, cut at the critical count. It increases with p, because more votes never certify less.
    """
    alive = np.ones(1)
    first, drawn, certified = 0, 0, 0.0
    for n, critical in zip(looks, counts, strict=True):
        fresh = n - drawn
        spread = DEVIATIONS * (fresh * p * (1 - p)) ** 0.5 + DEVIATIONS**2
        low, high = max(0, int(fresh * p - spread)), min(fresh, int(fresh * p + spread) + 1)
        alive = np.convolve(alive, binom.pmf(np.arange(low, high + 1), fresh, p))
        first, drawn = first + low, n
        cut = min(max(critical - first, 0), len(alive))
        certified += float(alive[cut:].sum())
        alive = alive[:cut] if cut else np.zeros(1)
    return certified
