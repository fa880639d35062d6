"""From counts to a certificate: confidence bounds, and the radius of randomized smoothing. No torch here."""

from __future__ import annotations

from hydrabench.laws import radius_of


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


def randomized_lower(count: int, n: int, *, alpha: float, uniform: float) -> float:
    """One-sided lower confidence bound whose coverage is exactly 1 - alpha: randomized Clopper-Pearson.

    It solves P_p(X > count) + U P_p(X = count) = alpha for p. The left side has the uniform law on [0, 1] if p is the
    truth, so it is below alpha with probability alpha. U = 1 gives the bound of Clopper and Pearson, smaller U a larger
    one, up to that of `count` + 1 for U = 0.

    Args: as `clopper_pearson_lower`; uniform: U, in (0, 1], drawn once for each certificate, independently of the
        count, and never again.
    Returns: the bound, in [0, 1), rounded down. Where all draws agree it is (alpha / U)^(1/n), so next to 1 if U <=
        alpha; callers keep U away from that, because a larger U is valid, too.
    Raises: ValueError if an argument is outside its range.
    Source: Voracek (2024), arXiv:2406.17830; Stevens (1950), Biometrika 37(1/2).
    """
    if not (0 <= count <= n and n >= 1 and 0 < alpha < 1 and 0 < uniform <= 1):
        raise ValueError(f"out of range: {count=}, {n=}, {alpha=}, {uniform=}")
    from scipy.special import betainc  # noqa: PLC0415  (slow to import, see above)

    def below(p: float) -> bool:
        at_least = betainc(count, n - count + 1, p) if count else 1.0
        more = betainc(count + 1, n - count, p) if count < n else 0.0
        return bool(uniform * at_least + (1 - uniform) * more <= alpha)

    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if below(middle) else (low, middle)
    return low


def clopper_pearson_upper(count: int, n: int, *, alpha: float) -> float:
    """One-sided upper confidence bound of a probability, the mirror image of `clopper_pearson_lower`.

    Args, Raises: as there.
    Returns: the bound, in [0, 1]; 1 if `count` is `n`.
    """
    return 1.0 - clopper_pearson_lower(n - count, n, alpha=alpha)


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
