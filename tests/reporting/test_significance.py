"""Paired statistics against worked numbers, other implementations, and simulations of what they promise."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from hydrabench.reporting.significance import (
    cochran,
    holm,
    mcnemar_p,
    paired_counts,
    pairs_of,
    rank_ranges,
    tango_interval,
)

# Patterns of four networks on 500 images: how many images are right for which of them.
PATTERNS = {
    "1111": 300, "1110": 30, "1101": 14, "1011": 10, "0111": 8, "1100": 25,
    "1000": 20, "0100": 9, "0010": 4, "0001": 3, "0000": 77,
}  # fmt: skip
FOUR = np.array([[digit == "1" for digit in pattern] for pattern, count in PATTERNS.items() for _ in range(count)]).T


@pytest.mark.parametrize(
    ("counts", "level", "ends"),
    [
        ((40, 22, 1000), 0.05, (0.0026456206, 0.0342066661)),
        ((40, 22, 1000), 0.01, (-0.0024005000, 0.0398021599)),
        ((12, 2, 50), 0.05, (0.0611124062, 0.3447087483)),
        ((9, 7, 44), 0.05, (-0.1376186439, 0.2264065799)),
        ((0, 0, 100), 0.05, (-0.0369934982, 0.0369934982)),  # z^2 / (n + z^2)
        ((5, 0, 1000), 0.05, (0.0011541077, 0.0116509554)),
    ],
)
def test_tangos_interval_of_worked_examples(counts, level, ends):
    assert tango_interval(*counts, level) == pytest.approx(ends, abs=1e-9)


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300))
def test_tangos_interval_holds_the_difference_and_turns_with_the_networks(n, b, c):
    b, c = b % (n + 1), c % (n + 1)
    if b + c > n:
        b, c = n - b, n - c
    low, high = tango_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert tango_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(("b", "c", "n"), [(3, 2, 4), (-1, 0, 10), (0, 0, 0)])
def test_counts_that_cannot_be_are_refused(b, c, n):
    with pytest.raises(ValueError, match="out of range"):
        tango_interval(b, c, n)


@cache
def intervals(n: int) -> tuple[np.ndarray, np.ndarray]:
    """All tables of n images, (T, 3), and their intervals, (T, 2)."""
    tables = [(b, c, n - b - c) for b, c in product(range(n + 1), repeat=2) if b + c <= n]
    return np.array(tables), np.array([tango_interval(b, c, n) for b, c, _ in tables])


def coverage(n: int, first: float, second: float) -> float:
    """How probable it is that the interval holds the true difference, by summing over all tables."""
    tables, ends = intervals(n)
    held = (ends[:, 0] <= first - second) & (first - second <= ends[:, 1])
    return float(multinomial.pmf(tables[held], n, [first, second, 1 - first - second]).sum())


@pytest.mark.parametrize(("first", "second"), [(0.2, 0.2), (0.3, 0.05), (0.05, 0.0)])
def test_tangos_interval_covers_the_true_difference(first, second):
    """Score intervals cover about 95 % on average, and may fall a little below for some probabilities."""
    assert coverage(20, first, second) > 0.93


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 60])
def test_tangos_interval_covers_at_least_ninety_four_percent_on_average(n):
    found = [coverage(n, a, b) for a, b in product([0.02, 0.1, 0.2, 0.4], repeat=2) if a + b <= 1]
    assert np.mean(found) > 0.945
    assert min(found) > 0.92


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_binomial_test_of_the_images_that_differ(b, c):
    assert mcnemar_p(b, c) == pytest.approx(binomtest(b, b + c).pvalue if b + c else 1.0)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(40, 22, 0.0300158643), (0, 7, 0.015625), (1, 8, 0.0390625), (10, 2, 0.0385742188), (0, 0, 1.0)],
)
def test_mcnemar_of_worked_examples(b, c, p):
    assert mcnemar_p(b, c) == pytest.approx(p, abs=1e-9)
    assert mcnemar_p(c, b) == mcnemar_p(b, c) == pytest.approx(mcnemar([[7, b], [c, 9]], exact=True).pvalue)


def test_holm_of_a_worked_example():
    assert holm([0.001, 0.013, 0.04, 0.041, 0.2]) == pytest.approx([0.005, 0.052, 0.12, 0.12, 0.2])
    assert holm([]) == []


def test_holm_agrees_with_statsmodels():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 40):
        family = rng.random(size) ** 4
        family[size // 2 :] = family[: size - size // 2]  # some are equal
        assert holm(family) == multipletests(family, method="holm")[1].tolist()


def test_cochran_of_a_worked_example():
    statistic, freedom, p = cochran(list(FOUR))
    assert (statistic, freedom, p) == (pytest.approx(80.1015228426), 3, pytest.approx(2.9192e-17, rel=1e-4))
    assert FOUR.sum(1).tolist() == [399, 386, 352, 335]


def test_cochran_of_networks_that_agree_finds_nothing():
    assert cochran([FOUR[0], FOUR[0]]) == (0.0, 1, 1.0)


def test_rank_ranges_of_a_worked_example():
    """Networks 0 and 1 cannot be told apart, all others can."""
    counts = [paired_counts(FOUR[i], FOUR[j]) for i, j in pairs_of(4)]
    assert [(one.first, one.second) for one in counts] == [(30, 17), (59, 12), (75, 11), (48, 14), (64, 13), (34, 17)]
    adjusted = holm([mcnemar_p(one.first, one.second) for one in counts])
    worked = [0.0789407, 5.39e-8, 4.42e-12, 5.23e-5, 1.51e-8, 0.0481858]
    assert adjusted == pytest.approx(worked, rel=2e-3)
    assert rank_ranges(list(FOUR), adjusted) == [(1, 2), (1, 2), (3, 3), (4, 4)]


def test_verdicts_on_other_images_are_not_compared():
    with pytest.raises(ValueError, match="the same images are needed, got 3 and 2"):
        paired_counts(np.ones(3), np.ones(2))


known_p = cache(mcnemar_p)


def false_alarms(trials: int, n: int, seed: int) -> float:
    """How often any of four equally good networks, alike on most images, gets a rank that excludes a true one."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(trials):
        easy = rng.random(n) < 0.7
        networks = [np.where(rng.random(n) < 0.8, easy, rng.random(n) < 0.7) for _ in range(4)]
        counts = [paired_counts(networks[i], networks[j]) for i, j in pairs_of(4)]
        adjusted = holm([known_p(one.first, one.second) for one in counts])
        found += any(rank != (1, 4) for rank in rank_ranges(networks, adjusted))
    return found / trials


def test_equal_networks_are_rarely_told_apart():
    """At most 5 % of families; of 300, 5 % plus three standard errors are 8.8 %."""
    assert false_alarms(300, 150, seed=0) <= 0.088


@pytest.mark.slow
def test_the_family_wise_error_is_at_most_five_percent():
    """Of 10,000 families, 5 % plus three standard errors are 5.7 %."""
    assert false_alarms(10_000, 500, seed=1) <= 0.057
