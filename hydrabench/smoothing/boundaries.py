"""Exact group-sequential certification: the least counts that claim a radius, by a binomial programme. No torch here.

For each probability p_1 < p_2 < ... the null hypothesis p <= p_j is tested at looks fixed in advance. A claim at a
look needs a critical count c, and the counts are chosen such that

    P(the count ever reaches c | p_j) <= alpha,

computed rather than bounded. That probability rises with p, so it holds for all p <= p_j. Several p_j share one alpha
without loss: p_j is claimed only if all smaller ones are. If p is true and p_k the smallest p_j >= p, any false
claim needs that of p_k, whose probability is at most alpha.

Source: group-sequential tests with error spending (Lan and DeMets 1983, Biometrika 70(3)), by the exact binomial
distribution; fixed-sequence testing (Maurer, Hothorn and Lehmacher 1995).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from hydrabench.laws import LAWS
from hydrabench.smoothing.sequential import Plan, Verdict

FIRST = 16  # draws at the first of the looks without a reason of their own
NEAR = 0.08  # such a look is left out if one with a reason is so near, relatively
STEP = 0.05  # the bound of the probability is known on a grid of radii, in units of sigma
RESIGN = 1e-3  # probability of giving up a radius that all draws would certify half of the time
NEGLECTED = 1e-12  # of alpha: cut off at each end of a distribution, and counted as false claims
UPWARD = 1 + 1e-9  # sums of probabilities are taken for larger by this than float64 gives them


@dataclass(frozen=True)
class Spacing:
    """The places of the looks, and their shares of alpha.

    growth: the draws at a look over those at the look before, for looks without a reason of their own.
    agreeing: share of alpha of the look at which all draws agreeing first claims a radius. last: of the last look.
    exact: whether the counts that give a radius up are computed, too, or their probabilities added up over the looks.
    """

    growth: float
    agreeing: float
    last: float
    exact: bool


# By benchmarks/replay.py: at most 1.14 times the bound of the draws, where SPARSE_LOOKS takes up to 1.23.
DENSE_LOOKS = Spacing(growth=1.1, agreeing=0.2, last=0.4, exact=True)
SPARSE_LOOKS = Spacing(growth=1.25, agreeing=0.25, last=0.5, exact=False)  # of protocols 3 and 4


@dataclass(frozen=True)
class Boundary:
    """The test of one probability.

    counts: for each look, the least count that claims; one more than the draws if none does.
    used: probability of a claim if the hypothesis holds with equality, an upper bound of its rounded value.
    """

    counts: tuple[int, ...]
    used: float


@lru_cache(maxsize=4096)
def boundary(p: float, looks: tuple[int, ...], shares: tuple[float, ...]) -> Boundary:
    """Return the critical counts at `looks` that spend `shares` of the failure probability, as late as they allow.

    The distribution of the count among the draws that have not claimed yet is convolved with the draws until the
    next look and cut at the critical count. What a look does not spend is left to the later ones.

    Args:
        p: the largest probability that is not to be claimed, in (0, 1).
        looks: draws at each look, ascending. shares: failure probability added by each look, >= 0.
    Returns: the boundary, whose `used` is at most the sum of the shares.
    """
    if not (0 < p < 1 and len(looks) == len(shares) and looks[0] >= 1 and all(np.diff(looks) > 0)):
        raise ValueError(f"out of range: {p=}, {looks=}, {shares=}")
    total = math.fsum(shares)
    neglected = total * NEGLECTED
    alive: NDArray[np.float64] = np.ones(1)
    first, drawn, used, counts = 0, 0, 0.0, []
    for n, allowed in zip(looks, np.minimum(np.cumsum(shares), total), strict=True):
        start, fresh, outside = _binomial(n - drawn, p, neglected)
        # Directly: the rounding of a Fourier transform is absolute and drowns small tails.
        alive, first, drawn, used = np.convolve(alive, fresh), first + start, n, used + outside
        tails = np.cumsum(alive[::-1])[::-1] * UPWARD
        if allowed > used:
            cut = int(np.searchsorted(-tails, used - allowed))
            counts.append(first + cut)
            used += float(tails[cut]) if cut < len(tails) else 0.0
        else:
            cut = len(tails)
            counts.append(n + 1)
        alive, first, outside = _trimmed(alive[:cut], first, neglected)
        used += outside
    if not used <= total:
        raise AssertionError(f"type I error {used} exceeds {total} at {p=}")
    return Boundary(tuple(counts), used)


def _binomial(draws: int, p: float, neglected: float) -> tuple[int, NDArray[np.float64], float]:
    """Return the first count, the probabilities from there on, and a bound of the probability of all others.

    By Bernstein's inequality a count is beyond mean + t with a probability of at most

        exp(-t^2 / (2 (variance + t / 3))),

    and below mean - t likewise; t makes that `neglected`. The ratios of neighbours give the probabilities: rounding
    errors stay below 1e-12, where those of logarithms of factorials reach 1e-9.
    """
    mean, depth = draws * p, -math.log(neglected)
    reach = depth / 3 + math.sqrt(depth**2 / 9 + 2 * depth * mean * (1 - p))
    low, high = max(0, math.ceil(mean - reach)), min(draws, math.floor(mean + reach))
    middle = min(max(int(mean), low), high) - low
    below = np.arange(low, high, dtype=np.float64)
    ratios = (draws - below) / (below + 1) * (p / (1 - p))
    mass = np.ones(high - low + 1)
    np.cumprod(ratios[middle:], out=mass[middle + 1 :])
    mass[:middle] = np.cumprod(1 / ratios[:middle][::-1])[::-1]
    return low, mass / mass.sum(), neglected * ((low > 0) + (high < draws))


def _trimmed(mass: NDArray[np.float64], first: int, neglected: float) -> tuple[NDArray[np.float64], int, float]:
    """Cut off both ends of a distribution that starts at the count `first`; the last number is what they held."""
    below = int(np.searchsorted(np.cumsum(mass), neglected))
    above = len(mass) - int(np.searchsorted(np.cumsum(mass[::-1]), neglected))
    if above <= below:
        return np.zeros(1), first, float(mass.sum()) * UPWARD
    return mass[below:above], first + below, float(mass[:below].sum() + mass[above:].sum()) * UPWARD


@dataclass(frozen=True)
class ExactSequential:
    """Mode adaptive: claim each radius at the exact boundary, give it up when that is out of reach.

    spacing: where the looks are, and how they share alpha.

    The bound of the probability is known on a grid: the thresholds of the radii that are asked for and of the
    multiples of sigma / 20. Only the former decide when the draws stop. Giving up lowers claims and costs no alpha.

    With a tolerance t the grid has steps of t / 3, and draws go on until every threshold whose radius exceeds the
    claimed one by more than t / 2 is given up, too. Neighbours on the grid are at most t / 2 apart (a multiple beside
    a radius that is asked for is left out), so more draws could not raise the radius by more than t, but for the
    probability of giving up. The claims are the same tests as before, each at the full alpha: coverage does not
    depend on when the draws stop.
    """

    plan: Plan
    spacing: Spacing = DENSE_LOOKS

    @property
    def step(self) -> float:
        """The step of the grid of radii, in pixel units."""
        return STEP * self.plan.sigma if self.plan.tolerance is None else self.plan.tolerance / 3

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """The probabilities that can be claimed, ascending; each certifies the radius that it belongs to."""
        plan, step = self.plan, self.step
        asked = [t for t in (_threshold(r, plan) for r in plan.radii) if t < 1]
        largest = (plan.alpha / UPWARD**2) ** (1 / plan.samples)
        grid = [k * step for k in range(math.ceil((plan.radius(largest) or 0.0) / step) + 1)]
        between = {
            _threshold(radius, plan) for radius in grid if all(abs(radius - r) > step / 2 for r in plan.radii)
        } | {largest}
        return tuple(sorted({t for t in between if 0.5 + plan.slack < t <= largest} | set(asked)))

    @cached_property
    def lower(self) -> tuple[float, ...]:
        """The bound of the probability that each threshold gives, without what integer noise costs."""
        return tuple(threshold - self.plan.slack for threshold in self.thresholds)

    @cached_property
    def certifies(self) -> tuple[float, ...]:
        """The radius that each threshold gives."""
        return tuple(self.plan.radius(bound) or 0.0 for bound in self.lower)

    @cached_property
    def asked(self) -> tuple[int, ...]:
        """Return the places of the radii's thresholds among `thresholds`; past the end if they exceed 1."""
        places = {threshold: place for place, threshold in enumerate(self.thresholds)}
        return tuple(places.get(_threshold(r, self.plan), len(places)) for r in self.plan.radii)

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Draws at each look: where all draws agreeing first claims a radius, `growth` apart, and N."""
        samples, share = self.plan.samples, self.plan.alpha * self.spacing.agreeing
        spaced = []
        size = float(FIRST)
        while round(size) < samples:
            spaced.append(round(size))
            size *= self.spacing.growth
        known = [self.thresholds[place] for place in self.asked if place < len(self.thresholds)]
        reasons = {math.ceil(math.log(share / UPWARD**2) / math.log(t)) for t in known}
        reasons = {n for n in reasons if n < samples}
        return (*sorted(reasons | {n for n in spaced if all(abs(n - r) > NEAR * r for r in reasons)}), samples)

    def shares(self, threshold: float) -> tuple[float, ...]:
        """Return the shares of alpha of the looks.

        The largest for the last, where it keeps nearly Cohen's power; one for the first at which all draws agreeing
        claims the threshold, where most images of a good classifier are decided; the rest evenly for those between.
        """
        alpha, early = self.plan.alpha, len(self.looks) - 1
        agreeing, last = self.spacing.agreeing, self.spacing.last
        for place, n in enumerate(self.looks[:-1]):
            if threshold**n * UPWARD <= alpha * agreeing:
                between = early - place - 1
                if not between:
                    return (*[0.0] * place, alpha * (1 - last), alpha * last)
                even = alpha * (1 - last - agreeing) / between
                return (*[0.0] * place, alpha * agreeing, *[even] * between, alpha * last)
        return (*[0.0] * early, alpha)

    @cached_property
    def claims(self) -> tuple[tuple[int, ...], ...]:
        """For each threshold the critical counts at the looks."""
        return tuple(boundary(threshold, self.looks, self.shares(threshold)).counts for threshold in self.thresholds)

    @cached_property
    def given_up(self) -> dict[int, tuple[int, ...]]:
        """For the place of each radius that decides the largest counts, at the looks, that give it up.

        That is where no later look can claim it, or hardly: `RESIGN` is the probability of that, for all looks
        together, if the class were so likely that N draws claim half of the time.
        """
        looks, found = np.array(self.looks), {}
        for place in self.asked if self.plan.tolerance is None else range(len(self.thresholds)):
            if place < len(self.thresholds):
                counts = np.array(self.claims[place])
                hardly = self._hardly(looks, min(counts[-1] / looks[-1], 1.0))
                # Look k claims at counts[k]; if all draws until then agree, from counts[k] - looks[k] + looks[i] on.
                reach = np.minimum.accumulate((counts - looks)[::-1])[::-1]
                surely = np.append(reach[1:] + looks[:-1] - 1, looks[-1])
                found[place] = tuple(int(count) for count in np.maximum(hardly, surely))
        return found

    def _hardly(self, looks: NDArray[np.int64], likely: float) -> NDArray[np.int64]:
        """Return the largest counts that give up; a class of probability `likely` is given up with `RESIGN` at most."""
        early = len(looks) - 1
        if not self.spacing.exact:
            from scipy.stats import binom  # noqa: PLC0415  (takes a second to import)

            return np.asarray(binom.ppf(RESIGN / max(1, early), looks, likely) - 1, dtype=np.int64)
        if not early or likely == 1:
            return np.full(len(looks), -1)
        # The mirror image of a claim: votes for other classes, with the probability 1 - likely.
        others = boundary(1 - likely, self.looks, (*[RESIGN / early] * early, 0.0)).counts
        return np.asarray(looks - np.array(others), dtype=np.int64)

    @cached_property
    def spent(self) -> tuple[float, ...]:
        """For each look, the largest share of alpha that a test was given until then."""
        given = [np.cumsum(self.shares(threshold)) for threshold in self.thresholds] or [np.zeros(len(self.looks))]
        return tuple(float(share) for share in np.max(given, axis=0))

    @property
    def first(self) -> int:
        """The first look."""
        return self.looks[0]

    def look(self, n: int, count: int, best: float) -> Verdict:
        """Claim thresholds in their order; stop once each radius is claimed or given up."""
        at = self.looks.index(n)
        claimed = bisect_right(self.lower, best)
        while claimed < len(self.lower) and count >= self.claims[claimed][at]:
            claimed += 1
        best = self.lower[claimed - 1] if claimed else best
        # Thresholds come in their order: where the next is given up, so are the larger ones.
        pending = (self._next_radius(claimed), self._beyond_tolerance(claimed))
        settled = all(place is None or count <= self.given_up[place][at] for place in pending)
        return Verdict(best, None if settled or n == self.plan.samples else self.looks[at + 1])

    def _next_radius(self, claimed: int) -> int | None:
        """The place of the least radius that is asked for and not among the `claimed` thresholds."""
        return next((place for place in self.asked if claimed <= place < len(self.lower)), None)

    def _beyond_tolerance(self, claimed: int) -> int | None:
        """The place of the least threshold whose radius exceeds that of the last claimed by more than half of it."""
        if self.plan.tolerance is None:
            return None
        enough = (self.certifies[claimed - 1] if claimed else 0.0) + self.plan.tolerance / 2
        place = bisect_right(self.certifies, enough)
        return place if place < len(self.certifies) else None

    def alpha_spent(self, n: int) -> float:
        """The largest share of alpha that a test was given until `n` draws."""
        return self.spent[self.looks.index(n)]


def _threshold(radius: float, plan: Plan) -> float:
    """The least probability of which, less the slack, rounding leaves the radius certified."""
    found = LAWS[plan.law].probability(radius, plan.sigma) + plan.slack
    while found < 1 and ((got := plan.radius(found - plan.slack)) is None or got < radius):
        found = math.nextafter(found, 2)
    return found
