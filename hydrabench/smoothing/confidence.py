"""From counts to a certificate: confidence bounds, and the radius of randomized smoothing. No torch here."""

from __future__ import annotations

import math
from statistics import NormalDist


def clopper_pearson_lower(count: int, n: int, *, alpha: float) -> float:
    """One-sided lower confidence bound of a probability of which `count` of `n` draws came true.

    The true probability lies below it with probability at most `alpha`, whatever it is.

    Args:
        count: how many draws came true, in [0, n].
        n: number of independent draws, >= 1.
        alpha: failure probability, in (0, 1).
    Returns: the bound, in [0, 1]; 0 if `count` is 0.
    Raises: ValueError if an argument is outside the range given above.
    Source: Clopper and Pearson (1934), Biometrika 26(4); LOWERCONFBOUND of Cohen et al. (2019), section 3.2.2.
    """
    if not (0 <= count <= n and n >= 1 and 0 < alpha < 1):
        raise ValueError(f"out of range: {count=}, {n=}, {alpha=}")
    if count == 0:
        return 0.0
    # Imported here because it takes a second, and most commands never ask for a confidence bound.
    from statsmodels.stats.proportion import proportion_confint  # noqa: PLC0415

    # The two-sided interval at 2 * alpha has alpha on each side.
    return float(proportion_confint(count, n, alpha=2 * alpha, method="beta")[0])


def clopper_pearson_upper(count: int, n: int, *, alpha: float) -> float:
    """One-sided upper confidence bound of a probability, the mirror image of `clopper_pearson_lower`.

    Args, Raises: as there.
    Returns: the bound, in [0, 1]; 1 if `count` is `n`.
    """
    return 1.0 - clopper_pearson_lower(n - count, n, alpha=alpha)


def log_wealth(count: int, n: int, p: float) -> float:
    """Log wealth of a gambler who starts with 1 and bets against probability `p`, after `count` of `n` successes.

    The gambler averages over all constant bets with Jeffreys' prior (the Krichevsky-Trofimov mixture):
    E_n(p) = B(A + 1/2, n - A + 1/2) / (B(1/2, 1/2) p^A (1 - p)^(n - A)). If the probability is `p`, E_n is
    a non-negative martingale that starts at 1, so it ever reaches 1/alpha with probability at most alpha
    (Ville's inequality). It is convex in p, with its least value at count / n.

    Args: count and n as in `clopper_pearson_lower`; p in (0, 1).
    Source: field survey's formula from Voracek (2024), arXiv:2406.17830; Robbins (1970), Ann. Math. Stat. 41(5).
    """
    mixture = math.lgamma(count + 0.5) + math.lgamma(n - count + 0.5) - math.lgamma(n + 1)
    return mixture - math.log(math.pi) - count * math.log(p) - (n - count) * math.log1p(-p)


def betting_lower(count: int, n: int, *, alpha: float) -> float:
    """Lower end, after `n` draws, of the betting confidence sequence at level `alpha`.

    The true probability lies below it at any time with probability at most `alpha`, however often one
    looks, so the largest value seen so far may be kept: the sequence {p: E_n(p) < 1/alpha} holds the
    truth at all times at once, and this is its lower end.

    Args, Returns, Raises: as `clopper_pearson_lower`.
    Source: see `log_wealth`.
    """
    if not (0 <= count <= n and n >= 1 and 0 < alpha < 1):
        raise ValueError(f"out of range: {count=}, {n=}, {alpha=}")
    if count == 0:
        return 0.0
    low, high, level = 0.0, count / n, -math.log(alpha)
    # Bisection keeps `low` where the gambler has won, so rounding cannot raise the bound beyond the root.
    for _ in range(60):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if log_wealth(count, n, middle) >= level else (low, middle)
    return low


def betting_upper(count: int, n: int, *, alpha: float) -> float:
    """Upper end of the confidence sequence, the mirror image of `betting_lower`."""
    return 1.0 - betting_lower(n - count, n, alpha=alpha)


def radius_of(p_lower: float, *, sigma: float) -> float | None:
    """L2 radius that a lower bound of the selected class's probability certifies, in pixel units.

    Args:
        p_lower: in [0, 1). sigma: noise standard deviation in pixel units, > 0.
    Returns: sigma * Phi^-1(p_lower), or None, to abstain, if `p_lower` does not exceed 1/2.
    Raises: ValueError if `sigma` is not positive.
    Source: Cohen, Rosenfeld and Kolter (2019), arXiv:1902.02918, theorem 1 with p_B = 1 - p_A.
    """
    if not sigma > 0:
        raise ValueError(f"out of range: {sigma=}")
    return sigma * NormalDist().inv_cdf(p_lower) if p_lower > 0.5 else None


def certified_radius(count: int, n: int, *, alpha: float, sigma: float) -> float | None:
    """L2 radius inside which the smoothed classifier's prediction cannot change.

    Args:
        count: how many of the `n` estimation samples were given the selected class.
        n: number of estimation samples (N), drawn independently of the N0 selection samples.
        alpha: probability, in (0, 1), with which the returned radius may be wrong.
        sigma: noise standard deviation in pixel units, > 0.
    Returns: the radius in pixel units, or None to abstain.
    Raises: ValueError if an argument is outside the range given above.
    Source: Cohen, Rosenfeld and Kolter (2019), arXiv:1902.02918, Algorithm CERTIFY.
    """
    return radius_of(clopper_pearson_lower(count, n, alpha=alpha), sigma=sigma)


def prediction_p_value(top: int, second: int) -> float:
    """Return how likely a fair coin splits `top` + `second` draws so unevenly: small means that the top class leads.

    Args:
        top, second: votes of the two classes with the most votes, top >= second >= 0, not both 0.
    Returns: the two-sided p-value of the exact binomial test, in (0, 1]; PREDICT abstains above alpha.
    Raises: ValueError if an argument is outside the range given above.
    Source: Cohen, Rosenfeld and Kolter (2019), arXiv:1902.02918, Algorithm PREDICT.
    """
    if not top >= second >= 0 or top == 0:
        raise ValueError(f"out of range: {top=}, {second=}")
    from scipy.stats import binomtest  # noqa: PLC0415  (slow to import, see above)

    return float(binomtest(top, top + second, 0.5).pvalue)
