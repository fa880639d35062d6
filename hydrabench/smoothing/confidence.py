"""From counts to a certificate: Clopper-Pearson, and the radius of randomized smoothing. No torch here."""

from __future__ import annotations

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
    if not sigma > 0:
        raise ValueError(f"out of range: {sigma=}")
    p_lower = clopper_pearson_lower(count, n, alpha=alpha)
    return sigma * NormalDist().inv_cdf(p_lower) if p_lower > 0.5 else None
