"""What the records of one evaluation amount to: accuracies and mean radii, each with a 95 % interval.

An interval speaks about the sampling of images alone: what the same procedure would give on other
images from the same source. It says nothing about other seeds, stronger attacks or tighter bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydrabench.ledger import finite

LEVEL = 0.95
Verdicts = dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval over images.

    value, low, high: fractions in [0, 1], or mean radii in pixel units; low <= value <= high, and
    high is infinite where one image says nothing about the spread. count: how many of the `n` images
    count towards a fraction, None for a mean. method: "wilson", "clopper-pearson" or "t".
    """

    value: float
    low: float
    high: float
    count: int | None
    n: int
    method: str

    def as_json(self) -> dict[str, Any]:
        """The entry of `summary.json`; `count` is null for a mean, `high` is null if it is infinite."""
        return {"value": self.value, "low": self.low, "high": finite(self.high), "count": self.count}


def wilson(count: int, n: int) -> Estimate:
    """Score interval of a fraction: about 95 % coverage, for display.

    Args:
        count: successes, 0 <= count <= n.
        n: number of images, > 0.
    Raises: ValueError if an argument is outside the range given above.
    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    return _fraction(count, n, method="wilson")


def clopper_pearson(count: int, n: int) -> Estimate:
    """Exact interval of a fraction: at least 95 % coverage, for numbers that claim a guarantee.

    Args:
        count: successes, 0 <= count <= n.
        n: number of images, > 0.
    Raises: ValueError if an argument is outside the range given above.
    Source: Clopper and Pearson (1934), "The use of confidence or fiducial limits".
    """
    return _fraction(count, n, method="clopper-pearson")


def _fraction(count: int, n: int, *, method: str) -> Estimate:
    if not (n > 0 and 0 <= count <= n):
        raise ValueError(f"out of range: need 0 <= count <= n and n > 0, got {count=}, {n=}")
    # statsmodels takes seconds to import, which would delay every command that only might report.
    from statsmodels.stats.proportion import proportion_confint  # noqa: PLC0415

    name = {"wilson": "wilson", "clopper-pearson": "beta"}[method]
    low, high = proportion_confint(count, n, alpha=1 - LEVEL, method=name)
    value = count / n
    # At 0 and n the formulas end at the fraction itself up to rounding; the interval must contain it.
    return Estimate(value, max(0.0, min(float(low), value)), min(1.0, max(float(high), value)), count, n, method)


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean of per-image radii with Student's t interval over images.

    Args:
        values: one number >= 0 per image, at least one. The lower end is clipped to 0, the least that
            a radius can be; one image says nothing about the spread, so its upper end is infinite.
    Raises: ValueError if there are no values, or one is negative or not finite.
    """
    if not values or not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"needs at least one value, all finite and >= 0, got {len(values)} values")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, 0.0, math.inf, None, n, "t")
    from scipy.stats import t  # noqa: PLC0415  (slow to import, see above)

    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * math.sqrt(variance / n)
    return Estimate(mean, max(0.0, mean - half), mean + half, None, n, "t")


def _correct(record: Mapping[str, Any]) -> bool:
    return bool(record["prediction"] == record["label"])


def _clean(records: Sequence[Mapping[str, Any]], _radii: Sequence[float]) -> Verdicts:
    return {"clean_accuracy": tuple(map(_correct, records))}


def _attacked(records: Sequence[Mapping[str, Any]], radii: Sequence[float]) -> Verdicts:
    robust = tuple(_correct(record) and bool(record["robust"]) for record in records)
    return {**_clean(records, radii), "robust_accuracy": robust}


def _verified(records: Sequence[Mapping[str, Any]], radii: Sequence[float]) -> Verdicts:
    verified = tuple(_correct(record) and bool(record["verified"]) for record in records)
    return {**_clean(records, radii), "verified_accuracy": verified}


def _smoothed(records: Sequence[Mapping[str, Any]], radii: Sequence[float]) -> Verdicts:
    if records and all(record.get("mode") == "predict" for record in records):
        return _predicted(records)
    earned = [float(record["radius"]) if _correct(record) and not record["abstain"] else None for record in records]
    certified = {
        f"certified_accuracy@{radius:g}": tuple(r is not None and r >= radius for r in earned) for radius in radii
    }
    return {**certified, "average_certified_radius": tuple(r or 0.0 for r in earned)}


def _predicted(records: Sequence[Mapping[str, Any]]) -> Verdicts:
    return {
        "smoothed_accuracy": tuple(_correct(record) and not record["abstain"] for record in records),
        "abstained": tuple(bool(record["abstain"]) for record in records),
    }


KINDS: dict[str, Callable[[Sequence[Mapping[str, Any]], Sequence[float]], Verdicts]] = {
    "clean": _clean,
    "pgd": _attacked,
    "autoattack": _attacked,
    "ibp": _verified,
    "symbolic": _verified,
    "crown-ibp": _verified,
    "crown": _verified,
    "cascade": _verified,
    "alpha-crown": _verified,
    "smoothing": _smoothed,
}


def verdicts(kind: str, records: Sequence[Mapping[str, Any]], radii: Sequence[float] = ()) -> Verdicts:
    """What each image contributes to each metric: true or false, or a radius; in the order of `records`.

    Args:
        kind: kind of evaluation, a key of `KINDS`.
        records: the lines of a ledger.
        radii: L2 radii, pixel units, at which to count smoothing certificates.
    Returns: metric name → one value per record. `robust_accuracy` and `verified_accuracy` ask for a
        correct clean prediction too. `certified_accuracy@R` (R written with %g) asks for a correct
        prediction, no abstention and a radius of at least R; whatever is not abstained has a radius
        above 0, so R = 0 gives the accuracy of the smoothed classifier with abstentions counted as
        wrong (Cohen et al. 2019, section 4). `average_certified_radius` counts 0 for wrong predictions
        and abstentions (Zhai et al. 2020, arXiv:2001.02378, section 3). Records of mode "predict" certify no
        radius: `smoothed_accuracy` asks for a correct prediction and no abstention, `abstained` counts those.
    Raises: ValueError if `kind` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of evaluation {kind!r}; choose one of: {', '.join(sorted(KINDS))}")
    return KINDS[kind](records, radii)


def estimate(metric: str, values: Sequence[float]) -> Estimate:
    """Put a number and an interval on what the images contribute to `metric`.

    Wilson for clean and robust accuracy, Clopper–Pearson for verified and certified accuracy, where a
    guarantee is claimed, and Student's t for the average certified radius.
    """
    if metric == "average_certified_radius":
        return mean_interval(values)
    interval = wilson if metric in ("clean_accuracy", "robust_accuracy") else clopper_pearson
    return interval(sum(map(bool, values)), len(values))


def summarize(
    settings_kind: str, records: Sequence[Mapping[str, Any]], *, radii: Sequence[float] = ()
) -> dict[str, Any]:
    """Build the body of `summary.json` from the records of one evaluation.

    Args: see `verdicts`; at least one record.
    Returns: {"n": N, "metrics": {NAME: {"value", "low", "high", "count"}}}, fractions in [0, 1]; the
        `count` of `average_certified_radius`, a mean in pixel units, is None (null in JSON).
    Raises: ValueError if `settings_kind` is unknown or there are no records.
    """
    found = verdicts(settings_kind, records, radii)
    return {
        "n": len(records),
        "metrics": {metric: estimate(metric, values).as_json() for metric, values in found.items()},
    }
