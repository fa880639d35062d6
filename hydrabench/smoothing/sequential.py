"""Stopping rules: from the counts of one image to a certificate, at fixed looks. No torch here.

A rule says when to look first. At each look it takes the count so far and gives the lower bound of the
selected class's probability, and the number of draws at which to look next, or None: stop. Write H_r:
p_A < Phi(r / sigma). The hypotheses are nested, so one bound that is valid at the time of stopping answers
all radii at once (field survey, section 3.3):

- claiming a radius early, after looking several times, spends alpha;
- giving up early spends none, because it only ever lowers the claim;
- stopping when the fixed-N verdict is settled changes nothing and spends none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Protocol

from hydrabench.smoothing.confidence import (
    betting_lower,
    betting_upper,
    clopper_pearson_lower,
    clopper_pearson_upper,
    radius_of,
)

FIRST_LOOK = 200
GIVE_UP = 1e-4  # beta: how (un)likely a radius may be that is given up; no guarantee rests on it
CURTAILED_LOOKS = 200  # looks of the curtailed rule are at least N / 200 draws apart
BETTING_GROWTH = 1.1


@dataclass(frozen=True)
class Plan:
    """The certificate that is wanted for each image.

    samples: N, the most draws. alpha: failure probability of the certificate. sigma: noise. radii: the
    L2 radii that are asked for, pixel units. slack: subtracted from every lower bound of a probability
    (`discrete.slack`; 0 for Gaussian noise).
    """

    samples: int
    alpha: float
    sigma: float
    radii: tuple[float, ...]
    slack: float = 0.0

    def certified(self, p_lower: float) -> int:
        """Return how many of the radii a lower bound of the probability certifies."""
        radius = radius_of(p_lower, sigma=self.sigma)
        return 0 if radius is None else sum(radius >= asked for asked in self.radii)


@dataclass(frozen=True)
class Verdict:
    """The state after a look. p_lower: best bound so far. following: draws at the next look, None: stop."""

    p_lower: float
    following: int | None


class Rule(Protocol):
    """One way to certify an image; the same object serves all images."""

    @property
    def first(self) -> int:
        """Draws at the first look."""

    def look(self, n: int, count: int, best: float) -> Verdict:
        """Judge `count` votes of `n` draws; `best` is the bound of the look before, 0 at first."""

    def alpha_spent(self, n: int) -> float:
        """Failure probability used up by the looks until `n` draws."""


@dataclass(frozen=True)
class FixedSize:
    """Cohen's CERTIFY: N draws, one look. Source: Cohen et al. (2019), arXiv:1902.02918."""

    plan: Plan

    @property
    def first(self) -> int:
        """All draws."""
        return self.plan.samples

    def look(self, n: int, count: int, best: float) -> Verdict:
        """The bound of the only look."""
        bound = clopper_pearson_lower(count, n, alpha=self.plan.alpha) - self.plan.slack
        return Verdict(max(best, bound), None)

    def alpha_spent(self, n: int) -> float:  # noqa: ARG002
        """All of it."""
        return self.plan.alpha


@dataclass(frozen=True)
class Curtailed:
    """`FixedSize`, stopped as soon as the remaining draws cannot change the verdict at any radius.

    A radius is certified once the count reaches what N draws would need, whatever comes; it is out of
    reach once even N - n more votes would not do. The bound is that of N draws of which the missing ones
    all fail, so it never exceeds Cohen's on the same draws and certifies exactly the same of the radii.
    Looking costs nothing, so looks are put where everything could be settled at the earliest.
    """

    plan: Plan

    @cached_property
    def needed(self) -> tuple[int, ...]:
        """For each radius, the least count of N that certifies it; N + 1 if none does."""
        return tuple(self._least(radius) for radius in self.plan.radii)

    @property
    def first(self) -> int:
        """The earliest look at which the verdict can be settled."""
        return self._next(0, 0) or 1

    def look(self, n: int, count: int, best: float) -> Verdict:
        """Stop if every radius is certified or out of reach."""
        bound = clopper_pearson_lower(count, self.plan.samples, alpha=self.plan.alpha) - self.plan.slack
        return Verdict(max(best, bound), self._next(n, count))

    def alpha_spent(self, n: int) -> float:  # noqa: ARG002
        """All of it: the bound is the fixed-N one."""
        return self.plan.alpha

    def _next(self, n: int, count: int) -> int | None:
        """The next look: not before the draws that could settle each open radius."""
        left = self.plan.samples - n
        open_radii = [least for least in self.needed if count < least <= count + left]
        if not open_radii:
            return None
        earliest = max(min(least - count, left - (least - count) + 1) for least in open_radii)
        return min(n + max(earliest, self.plan.samples // CURTAILED_LOOKS), self.plan.samples)

    def _least(self, radius: float) -> int:
        low, high = 0, self.plan.samples + 1
        while low < high:
            middle = (low + high) // 2
            bound = clopper_pearson_lower(middle, self.plan.samples, alpha=self.plan.alpha) - self.plan.slack
            found = radius_of(bound, sigma=self.plan.sigma)
            low, high = (low, middle) if found is not None and found >= radius else (middle + 1, high)
        return low


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
        return Verdict(best, _unless_settled(self.plan, best, upper, self.looks[self.looks.index(n) + 1]))

    def bound(self, n: int, count: int) -> float:
        """The bound of one look alone; it exceeds the truth with probability at most this look's alpha."""
        return clopper_pearson_lower(count, n, alpha=self.alphas[self.looks.index(n)]) - self.plan.slack

    def alpha_spent(self, n: int) -> float:
        """The shares of the looks so far."""
        return list(accumulate(self.alphas))[self.looks.index(n)]


@dataclass(frozen=True)
class Betting:
    """A confidence sequence that is valid at any time, by betting against each probability (`log_wealth`).

    The looks, each about a tenth later than the one before, are only where it is worth computing: the
    guarantee holds at all times, so they could be chosen in any way.
    Source: Voracek (2024), arXiv:2406.17830, one-sided, with all of alpha for the lower end.
    """

    plan: Plan

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Draws at each look, multiples of 100 below N, then N."""
        sizes = [FIRST_LOOK]
        while sizes[-1] < self.plan.samples:
            sizes.append(max(sizes[-1] + 100, round(sizes[-1] * BETTING_GROWTH / 100) * 100))
        return (*sizes[:-1], self.plan.samples)

    @property
    def first(self) -> int:
        """The first look."""
        return self.looks[0]

    def look(self, n: int, count: int, best: float) -> Verdict:
        """Stop if every radius that is within reach is certified."""
        best = max(best, self.bound(n, count))
        if n == self.plan.samples:
            return Verdict(best, None)
        upper = betting_upper(count, n, alpha=GIVE_UP)
        return Verdict(best, _unless_settled(self.plan, best, upper, next(size for size in self.looks if size > n)))

    def bound(self, n: int, count: int) -> float:
        """The lower end of the confidence sequence after `n` draws."""
        return betting_lower(count, n, alpha=self.plan.alpha) - self.plan.slack

    def alpha_spent(self, n: int) -> float:  # noqa: ARG002
        """All of it, at any time."""
        return self.plan.alpha


def _unless_settled(plan: Plan, p_lower: float, p_upper: float, following: int) -> int | None:
    """The next look, or None if every radius that `p_upper` leaves within reach is certified by `p_lower`."""
    reachable = len(plan.radii) if p_upper >= 1 else plan.certified(p_upper)
    return None if plan.certified(p_lower) >= reachable else following
