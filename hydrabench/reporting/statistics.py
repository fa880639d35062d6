"""Accuracies and mean radii of one evaluation, each with a 95 % interval.

An interval speaks about the sampling of images alone: what the same procedure would give on other
images from the same source. It says nothing about other seeds, stronger attacks or tighter bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hydrabench.errors import lookup
from hydrabench.evaluators import EVALUATORS, Metric
from hydrabench.ledger import finite_or_none

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval over images.

    value, low, high: fractions in [0, 1], or mean radii in pixel units; low <= value <= high, and
    high is infinite where one image says nothing about the spread. count: how many of the `n` images
    count towards a fraction, None for a mean. method: "wilson", "clopper-pearson", "t";
    "none" of a fraction and "mean" of a mean that have no interval.
    """

    value: float
    low: float
    high: float
    count: int | None
    n: int
    method: str

    def as_json(self) -> dict[str, Any]:
        """The entry of `summary.json`; `count` is null for a mean, an end is null if it is infinite."""
        low, high = finite_or_none(self.low), finite_or_none(self.high)
        return {"value": self.value, "low": low, "high": high, "count": self.count}


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
    from statsmodels.stats.proportion import proportion_confint

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
    if not len(values) or not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"needs at least one value, all finite and >= 0, got {len(values)} values")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, 0.0, math.inf, None, n, "t")
    from scipy.stats import t

    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * math.sqrt(variance / n)
    return Estimate(mean, max(0.0, mean - half), mean + half, None, n, "t")


INTERVALS: dict[str, Callable[[Sequence[float]], Estimate]] = {
    "wilson": lambda values: wilson(int(np.count_nonzero(values)), len(values)),
    "clopper-pearson": lambda values: clopper_pearson(int(np.count_nonzero(values)), len(values)),
    "t": mean_interval,
}


def estimate(interval: str, values: Sequence[float] | np.ndarray[Any, Any]) -> Estimate:
    """Return the number that `values` make, one for each image, with its interval: a key of `INTERVALS`."""
    return INTERVALS[interval](values.tolist() if isinstance(values, np.ndarray) else values)


def estimates(metrics: Mapping[str, Metric]) -> dict[str, Estimate]:
    """Return the number and the interval of each metric."""
    return {name: estimate(metric.interval, metric.values) for name, metric in metrics.items()}


def summarize(kind: str, records: Sequence[Mapping[str, Any]], settings: Any) -> dict[str, Any]:
    """Build the body of `summary.json` from the records of one evaluation.

    Args:
        kind: key of `EVALUATORS`. records: the lines of its ledger, at least one. settings: those of the run.
    Returns: {"n": N, "metrics": {NAME: {"value", "low", "high", "count"}}}, fractions in [0, 1]; the
        `count` of a mean is None (null in JSON).
    Raises: ConfigError if `kind` is unknown; ValueError if there are no records.
    """
    found = lookup("evaluator", EVALUATORS, kind).metrics(records, settings)
    return {"n": len(records), "metrics": {name: one.as_json() for name, one in estimates(found).items()}}


def metric_lines(summary: Mapping[str, Any]) -> list[str]:
    """Write the metrics of a `summary.json` as a reader sees them, one a line, with their intervals."""
    lines = []
    for name, metric in summary["metrics"].items():
        bounded = metric.get("high") is not None  # not for a validation metric, nor for the mean of one image
        interval = f"  [{metric['low']:.4f}, {metric['high']:.4f}]" if bounded else ""
        implied = summary.get("implied_linf", {}).get(name.partition("@")[2])
        linf = f"  (L∞ {implied * 255:.2f}/255)" if implied else ""
        lines.append(f"  {name:<32}{metric['value']:.4f}{interval}{linf}")
    for name, quantiles in summary.get("radii", {}).items():
        low, middle, high = (
            "none" if quantiles[at] is None else f"{quantiles[at]:.4f}" for at in ("0.05", "0.5", "0.95")
        )
        lines.append(f"  {f'{name}_radius, median':<32}{middle}  (5 % {low}, 95 % {high})")
    return lines
