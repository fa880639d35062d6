"""Stopping rules: from the counts of one image to a certificate, at fixed looks. No torch here.

A rule says when to look first. At each look it takes the count so far and gives the lower bound of the
selected class's probability, and the number of draws at which to look next, or None: stop. Write H_r:
p_A < Phi(r / sigma). The hypotheses are nested, so one bound that is valid at the time of stopping answers
all radii at once (field survey, section 3.3):

- claiming a radius early, after looking several times, spends alpha;
- giving up early spends none, because it only ever lowers the claim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Protocol

from hydrabench.laws import radius_of
from hydrabench.smoothing.confidence import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    randomized_lower,
)

FIRST_LOOK = 200
GIVE_UP = 1e-4  # beta: how (un)likely a radius may be that is given up; no guarantee rests on it


@dataclass(frozen=True)
class Plan:
    """The certificate that is wanted for each image.

    samples: N, the most draws. alpha: failure probability of the certificate. sigma, law: of the noise. radii: those
    that are asked for, in the law's norm and pixel units. slack: subtracted from every lower bound of a probability
    (`discrete.slack`; 0 for Gaussian noise). tolerance: how much of the radius may be lost by stopping early, pixel
    units; None: whatever lies between the radii.
    """

    samples: int
    alpha: float
    sigma: float
    radii: tuple[float, ...]
    slack: float = 0.0
    tolerance: float | None = None
    law: str = "gaussian"

    def radius(self, p_lower: float) -> float | None:
        """Return the radius that a lower bound of the probability certifies; None: none."""
        return radius_of(p_lower, sigma=self.sigma, law=self.law)

    def certified(self, p_lower: float) -> int:
        """Return how many of the radii a lower bound of the probability certifies."""
        radius = self.radius(p_lower)
        return 0 if radius is None else sum(radius >= asked for asked in self.radii)


@dataclass(frozen=True)
class Verdict:
    """The state after a look. p_lower: best bound so far. following: draws at the next look, None: stop."""

    p_lower: float
    following: int | None


class Rule(Protocol):
    """One way to certify an image; the same object serves all images."""

    @property
    def plan(self) -> Plan:
        """The radii, draws and level that are to be certified."""

    @property
    def first(self) -> int:
        """Draws at the first look."""

    def look(self, n: int, count: int, best: float) -> Verdict:
        """Judge `count` votes of `n` draws; `best` is the bound of the look before, 0 at first."""

    def alpha_spent(self, n: int) -> float:
        """Failure probability used up by the looks until `n` draws."""


@dataclass(frozen=True)
class FixedSize:
    """Cohen's CERTIFY: N draws, one look. Source: Cohen et al. (2019), arXiv:1902.02918.

    uniform: the number of a randomized bound, see `confidence.randomized_lower`; 1: the bound of Clopper and Pearson.
    """

    plan: Plan
    uniform: float = 1.0

    @property
    def first(self) -> int:
        """All draws."""
        return self.plan.samples

    def look(self, n: int, count: int, best: float) -> Verdict:
        """The bound of the only look."""
        if self.uniform == 1:
            bound = clopper_pearson_lower(count, n, alpha=self.plan.alpha)
        else:
            bound = randomized_lower(count, n, alpha=self.plan.alpha, uniform=self.uniform)
        return Verdict(max(best, bound - self.plan.slack), None)

    def alpha_spent(self, n: int) -> float:  # noqa: ARG002
        """All of it."""
        return self.plan.alpha


@dataclass(frozen=True)
class GroupSequential:
    """Clopper-Pearson bounds at looks of doubling size that share alpha: half for the last, the rest evenly.

    For the lost votes of `reuse`, and for mode adaptive of versions 1 and 2; `boundaries` has that of version 3.
    The probability that any look's bound exceeds the truth is at most the sum of their alphas, so the
    largest bound so far may be kept, and draws of earlier looks stay in. A radius is given up when an
    upper bound says that it is out of reach, with 1e-4 for all looks together; that only lowers claims.
    Source: group-sequential error spending (Pocock 1977; Lan and DeMets 1983) on the bound of Cohen et al.
    """

    plan: Plan

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Draws at each look: 200, 400, 800, ... below N, then N."""
        sizes = [FIRST_LOOK]
        while sizes[-1] < self.plan.samples:
            sizes.append(2 * sizes[-1])
        return (*sizes[:-1], self.plan.samples)

    @cached_property
    def alphas(self) -> tuple[float, ...]:
        """The share of each look."""
        early = len(self.looks) - 1
        return (self.plan.alpha,) if not early else (*[self.plan.alpha / (2 * early)] * early, self.plan.alpha / 2)

    @property
    def first(self) -> int:
        """The first look."""
        return self.looks[0]

    def look(self, n: int, count: int, best: float) -> Verdict:
        """Stop if every radius that is within reach is certified."""
        best = max(best, self.bound(n, count))
        if n == self.plan.samples:
            return Verdict(best, None)
        upper = clopper_pearson_upper(count, n, alpha=GIVE_UP / (len(self.looks) - 1))
        reachable = len(self.plan.radii) if upper >= 1 else self.plan.certified(upper)
        settled = self.plan.certified(best) >= reachable
        return Verdict(best, None if settled else self.looks[self.looks.index(n) + 1])

    def bound(self, n: int, count: int) -> float:
        """The bound of one look alone; it exceeds the truth with probability at most this look's alpha."""
        return clopper_pearson_lower(count, n, alpha=self.alphas[self.looks.index(n)]) - self.plan.slack

    def alpha_spent(self, n: int) -> float:
        """The shares of the looks so far."""
        return list(accumulate(self.alphas))[self.looks.index(n)]
