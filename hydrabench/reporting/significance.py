"""Paired comparisons of networks on the same images: exact tests, and intervals of differences.

`b` images hold for the first network alone, `c` for the second alone, of `n` images. A family is the set of tests that
are corrected together; with Holm's correction no true null hypothesis of a family is rejected with probability above
the level, whatever the dependence between the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FAMILY_ERROR = 0.05  # of the family-wise error, and one minus the level of intervals
HALVINGS = 60  # of the bisection; the interval [-1, 1] shrinks below the rounding of float64
Verdicts = np.ndarray[Any, Any]  # of one network, one truth value an image


@dataclass(frozen=True)
class PairedCounts:
    """Two networks on the same images.

    both, first, second, neither: how many images hold for both, for one of them alone, or for neither.
    """

    both: int
    first: int
    second: int
    neither: int

    @property
    def n(self) -> int:
        """All images."""
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """Fraction of the first network minus that of the second."""
        return (self.first - self.second) / self.n


def paired_counts(first: Verdicts, second: Verdicts) -> PairedCounts:
    """Count the images of two networks, whose verdicts are in the same order."""
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"verdicts on the same images are needed, got {a.size} and {b.size}")
    return PairedCounts(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))


def tango_interval(b: int, c: int, n: int, level: float = FAMILY_ERROR) -> tuple[float, float]:
    """Return the score interval of a paired difference (b - c) / n.

    It consists of the differences D that a test does not reject. Its statistic is

        Z(D) = (b - c - n D) / sqrt(n (2 q + D (1 - D))),

    where q, the most likely probability of an image of the second network alone, solves
    2n q^2 + (-b - c + (2n - b + c) D) q - c D (1 - D) = 0. Z falls with D.

    Args:
        b, c: at least 0, at most n together. n: number of images, above 0.
        level: one minus the nominal coverage, in (0, 1).
    Returns: the ends, in [-1, 1].
    Raises: ValueError if an argument is out of range.
    Source: Tango (1998), "Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design", Statistics in Medicine 17, equations 3 and 4.
    """
    if not (n > 0 and b >= 0 and c >= 0 and b + c <= n and 0 < level < 1):
        raise ValueError(f"out of range: {b=}, {c=}, {n=}, {level=}")
    from scipy.stats import norm

    z = float(norm.isf(level / 2))
    estimate = (b - c) / n
    low = _crossing(b, c, n, z, (-1.0, estimate))
    return low, _crossing(b, c, n, -z, (estimate, 1.0))


def _crossing(b: int, c: int, n: int, z: float, between: tuple[float, float]) -> float:
    """Return the difference in an interval at which the statistic falls through `z`, or the end it never passes."""
    low, high = between
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _tango_statistic(b, c, n, middle) > z:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _tango_statistic(b: int, c: int, n: int, difference: float) -> float:
    numerator = b - c - n * difference
    linear = -b - c + (2 * n - b + c) * difference
    root = math.sqrt(max(0.0, linear * linear + 8 * n * c * difference * (1 - difference)))
    q = max(0.0, (root - linear) / (4 * n))
    variance = n * (2 * q + difference * (1 - difference))
    if variance <= 0:
        return 0.0 if abs(numerator) < 1e-12 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def mcnemar_p(b: int, c: int) -> float:
    """Return the two-sided p-value of the exact McNemar test; 1 where no image differs."""
    if not b + c:
        return 1.0
    from statsmodels.stats.contingency_tables import mcnemar

    return float(mcnemar([[0, b], [c, 0]], exact=True).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of a family, adjusted by Holm's method, in their order.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below one before it, or exceeds 1.
    Source: Holm (1979), "A simple sequentially rejective multiple test procedure". Ours, because statsmodels' function
        collects Python's garbage at every call, which takes a hundred times longer than the arithmetic.
    """
    values = np.asarray(p_values, dtype=float)
    order = values.argsort(kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return [float(p) for p in adjusted]


def cochran(verdicts: Sequence[Verdicts]) -> tuple[float, int, float]:
    """Return Cochran's Q of k networks on the same images, its degrees of freedom and its p-value.

    Images on which all networks agree play no part; if there are no others, Q is 0 and p is 1.
    """
    table = np.stack([np.asarray(one, dtype=bool) for one in verdicts], axis=1).astype(int)
    sums = table.sum(1)
    table = table[(sums > 0) & (sums < table.shape[1])]
    if not len(table):
        return 0.0, len(verdicts) - 1, 1.0
    from statsmodels.stats.contingency_tables import cochrans_q

    found = cochrans_q(table)
    return float(found.statistic), len(verdicts) - 1, float(found.pvalue)


def rank_ranges(verdicts: Sequence[Verdicts], adjusted: Sequence[float]) -> list[tuple[int, int]]:
    """Return the best and the worst rank that each network may have; all of them hold at once at `FAMILY_ERROR`.

    The best rank is one more than the networks that are significantly better, the worst one leaves those below that
    are significantly worse.

    Args: adjusted: the p-value of each pair, corrected for the family, in the order of `pairs_of`.
    """
    k = len(verdicts)
    rates = [float(np.mean(one)) for one in verdicts]
    best, worst = [1] * k, [k] * k
    for (i, j), p in zip(pairs_of(k), adjusted, strict=True):
        if p <= FAMILY_ERROR and rates[i] != rates[j]:
            winner, loser = (i, j) if rates[i] > rates[j] else (j, i)
            best[loser] += 1
            worst[winner] -= 1
    return list(zip(best, worst, strict=True))


def pairs_of(k: int) -> list[tuple[int, int]]:
    """Return all pairs of k networks."""
    return [(i, j) for i in range(k) for j in range(i + 1, k)]
