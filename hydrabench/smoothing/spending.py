"""How often a rule with fixed looks claims too much, computed exactly rather than bounded. No torch here."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hydrabench.smoothing.sequential import Plan

DEVIATIONS = 14.0  # the binomial mass further out is below 1e-38


class Looks(Protocol):
    """A rule whose looks are fixed in advance: `GroupSequential` or `Betting`."""

    @property
    def plan(self) -> Plan:
        """What is to be certified."""

    @property
    def looks(self) -> tuple[int, ...]:
        """Draws at each look."""

    def bound(self, n: int, count: int) -> float:
        """The lower bound of one look alone; it rises with the count."""


def critical_counts(rule: Looks, radius: float) -> tuple[int, ...]:
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


def false_certificate_probability(rule: Looks, radius: float, p: float) -> float:
    """Probability that `radius` is ever certified, if the selected class has probability `p`.

    A binomial dynamic programme over the looks: the distribution of the count among the images that have
    not been certified yet, convolved with the draws until the next look, cut at the critical count. Giving
    up is left out, which can only raise the result. It increases with p (more votes never certify less), so
    at p = Phi(radius / sigma), the largest p that does not deserve the radius, it is the type-I error.

    Returns: the probability, exact up to rounding and a neglected mass below 1e-30.
    """
    from scipy.stats import binom  # noqa: PLC0415  (takes a second to import; only tests and studies ask)

    alive: NDArray[np.float64] = np.ones(1)
    first, drawn, certified = 0, 0, 0.0
    for n, critical in zip(rule.looks, critical_counts(rule, radius), strict=True):
        fresh = n - drawn
        spread = DEVIATIONS * (fresh * p * (1 - p)) ** 0.5 + DEVIATIONS**2
        low, high = max(0, int(fresh * p - spread)), min(fresh, int(fresh * p + spread) + 1)
        alive = np.convolve(alive, binom.pmf(np.arange(low, high + 1), fresh, p))
        first, drawn = first + low, n
        cut = min(max(critical - first, 0), len(alive))
        certified += float(alive[cut:].sum())
        alive = alive[:cut] if cut else np.zeros(1)
    return certified
