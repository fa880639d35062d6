"""Smoothing that is sound in floating point: integer noise on the grid of 8-bit pixels. No torch here.

The certificate of randomized smoothing is a theorem about real numbers. A float32 sum of an image and
Gaussian noise is not the real sum, its last bits tell the image apart, and a classifier can exploit that:
Voracek and Hein certify a radius of 1.26 with an adversarial example at 0.8 (ICLR 2023, arXiv:2207.07209).
Their remedy, which this module follows with a construction of its own: quantize before the network.

Let q round every coordinate to the nearest multiple of 1/255, and f be the network as it runs, with all
its rounding, on such images: a function of finitely many integers per coordinate. F = f(q(.)) is then an
ordinary function of a real image, and Cohen's theorem holds for it without any exception: if
P(F(x + N(0, sigma^2 I)) = c) >= p > 1/2, every x' with |x' - x| < sigma * Phi^-1(p) has
P(F(x' + N) = c) > 1/2. For an 8-bit image x = X / 255 rounding acts on the noise alone, because X is whole:
q(x + N) = (X + D) / 255 with independent integers D of law

    P(D <= k) = Phi((k + 1/2) / s),   s = 255 sigma.

So D is drawn directly, from 62 fair bits U: D is -M plus the number of thresholds T_j <= U, where
T_j = floor(2^62 Phi((j - M + 1/2) / s)), j = 0, ..., 2M - 1, in exact integers, and M = ceil(9 s).
No real noise, and no rounded sum, exists anywhere. Not clipped: X + D reaches beyond [0, 255].

What the integers lose. Each threshold is off by less than 2^-62, and each cut tail holds less than
Phi(-9) < 2^-62, so the laws of one coordinate differ by at most (2M + 2) 2^-62 in total variation, those of
an image of d coordinates by at most delta = d (2M + 2) 2^-62. If c has probability p with drawn noise, F has
at least p - delta; and where F has at least 1/2 + delta at x', drawn noise has at least 1/2. The radius
sigma (Phi^-1(p - delta) - Phi^-1(1/2 + delta)) is therefore certified for the classifier that is deployed,
noise and all. Phi^-1 steepens away from 1/2, so Phi^-1(p - 2 delta) is no larger wherever it is positive:
it is enough to subtract 2 delta from the confidence bound, and `slack` adds `EVALUATION_ERROR` for evaluating
the binomial quantile and Phi^-1 in float64.

What is assumed: the bits are fair and independent (a pseudo-random generator stands in for them, as in all
smoothing); the network maps equal images to equal classes, whatever else is in the batch, and is deployed
on the same kernels and in the same precision; the image is an 8-bit one (others are refused).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal, localcontext
from functools import lru_cache

LEVELS = 255
BITS = 62
TAIL = 9  # deviations; Phi(-9) = 1.1e-19 < 2^-62 = 2.2e-19
EVALUATION_ERROR = 1e-12
DECIMALS = 60
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")


def largest_noise(sigma: float) -> int:
    """M: the noise lies in [-M, M] grey levels. sigma: standard deviation in pixel units, > 0."""
    return math.ceil(TAIL * LEVELS * sigma)


def slack(sigma: float, coordinates: int) -> float:
    """Return what to subtract from a lower bound of a probability so that the certificate holds for drawn noise.

    Args:
        sigma: noise standard deviation in pixel units, > 0. coordinates: d = C * H * W.
    Returns: 2 delta + EVALUATION_ERROR of the module's docstring, rounded up.
    Raises: ValueError if an argument is not positive.
    """
    if not (sigma > 0 and coordinates >= 1):
        raise ValueError(f"out of range: {sigma=}, {coordinates=}")
    delta = coordinates * (2 * largest_noise(sigma) + 2) / 2**BITS
    return math.nextafter(2 * delta + EVALUATION_ERROR, math.inf)


@lru_cache(maxsize=8)
def thresholds(sigma: float) -> tuple[int, ...]:
    """The 2M integers T_j of the module's docstring, in [0, 2^62], never falling.

    Args: sigma: noise standard deviation in pixel units, > 0.
    Raises: ValueError if `sigma` is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"out of range: {sigma=}")
    below, above = [], []
    with localcontext() as context:
        context.prec = DECIMALS
        whole = Decimal(2**BITS)
        for beyond_half in _halves(sigma, largest_noise(sigma)):
            above.append(math.floor(whole * (Decimal("0.5") + beyond_half)))
            below.append(max(0, math.floor(whole * (Decimal("0.5") - beyond_half))))
    return (*reversed(below), *above)


def _halves(sigma: float, count: int) -> Iterator[Decimal]:
    """Phi((k + 1/2) / s) - 1/2 for k = 0, 1, ..., count - 1, to some 50 digits.

    phi(t) (t + t^3 / 3 + t^5 / (3 * 5) + ...): all terms are positive, so nothing cancels.
    Source: Abramowitz and Stegun (1964), equation 26.2.11.
    """
    deviation = Decimal(sigma) * LEVELS
    scale = 1 / (2 * _PI).sqrt()
    for k in range(count):
        t = (k + Decimal("0.5")) / deviation
        term, total, odd = t, t, 1
        while term > total * Decimal(10) ** (5 - DECIMALS):
            odd += 2
            term = term * t * t / odd
            total += term
        yield scale * (-t * t / 2).exp() * total
