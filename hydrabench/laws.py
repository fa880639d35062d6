"""Laws of smoothing noise and the radii that they certify.

All coordinates of the noise are independent with one law of mean 0, whose standard deviation is sigma whatever the law.
With p > 1/2 the probability of a class under noise, no perturbation below the radius makes another class as likely:

    gaussian   L2   sigma Phi^-1(p)
    uniform    L1   2 w (p - 1/2)          noise in [-w, w], w = sigma sqrt(3)
    laplace    L1   -b ln(2 (1 - p))       density exp(-|t| / b) / (2 b), b = sigma / sqrt(2)

Each follows from the likelihood ratio of the noise and the shifted noise (Neyman and Pearson). In L-infinity, d
coordinates: the Gaussian has 1/sqrt(d) of its radius; the uniform cubes of a shift by r overlap in (1 - r / 2w)^d of
their volume, which gives 2 w (1 - (3/2 - p)^(1/d)); for Laplace noise 1/d of the L1 radius is stated, because an
L-infinity ball of radius r lies in the L1 ball of radius d r.

Source: Cohen et al. (2019), arXiv:1902.02918; Yang et al. (2020), arXiv:2002.08118, table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal


@dataclass(frozen=True)
class Law:
    """One law of noise.

    norm: of its radii.
    radius: (p, sigma) -> radius in pixel units, for p in (1/2, 1).
    probability: (radius, sigma) -> the p that certifies it, the inverse; may exceed 1 where none does.
    linf: (p, sigma, d) -> L-infinity radius of images with d coordinates.
    """

    norm: Literal["l2", "l1"]
    radius: Callable[[float, float], float]
    probability: Callable[[float, float], float]
    linf: Callable[[float, float, int], float]


def _gaussian(p: float, sigma: float) -> float:
    return sigma * NormalDist().inv_cdf(p)


def _uniform(p: float, sigma: float) -> float:
    return 2 * sigma * math.sqrt(3) * (p - 0.5)


def _laplace(p: float, sigma: float) -> float:
    return -sigma / math.sqrt(2) * math.log(2 * (1 - p))


def _uniform_linf(p: float, sigma: float, coordinates: int) -> float:
    return -2 * sigma * math.sqrt(3) * math.expm1(math.log(1.5 - p) / coordinates)


LAWS: dict[str, Law] = {
    "gaussian": Law(
        "l2",
        _gaussian,
        lambda radius, sigma: NormalDist().cdf(radius / sigma),
        lambda p, sigma, coordinates: _gaussian(p, sigma) / math.sqrt(coordinates),
    ),
    "uniform": Law("l1", _uniform, lambda radius, sigma: 0.5 + radius / (2 * sigma * math.sqrt(3)), _uniform_linf),
    "laplace": Law(
        "l1",
        _laplace,
        lambda radius, sigma: 1 - math.exp(-radius * math.sqrt(2) / sigma) / 2,
        lambda p, sigma, coordinates: _laplace(p, sigma) / coordinates,
    ),
}


def radius_of(p_lower: float, *, sigma: float, law: str = "gaussian") -> float | None:
    """Radius that a lower bound of the selected class's probability certifies, in pixel units and the law's norm.

    Args:
        p_lower: in [0, 1). sigma: standard deviation of the noise in pixel units, > 0. law: of `LAWS`.
    Returns: the radius, or None, to abstain, if `p_lower` does not exceed 1/2.
    Raises: ValueError if `sigma` is not positive.
    Source: see the module; of the Gaussian it is theorem 1 of Cohen et al. with p_B = 1 - p_A.
    """
    if not sigma > 0:
        raise ValueError(f"out of range: {sigma=}")
    return LAWS[law].radius(p_lower, sigma) if p_lower > 0.5 else None
