"""Intervals against their formulas and another implementation; metrics worked by hand."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from hydrabench.errors import ConfigError
from hydrabench.evaluators import EVALUATORS
from hydrabench.ledger import CORRUPTIONS
from hydrabench.reporting.statistics import (
    clopper_pearson,
    mean_interval,
    summarize,
    wilson,
)


def certified_at(*radii):
    """Settings of smoothing, as a ledger has them."""
    return EVALUATORS["smoothing"].read({"radii": radii})


Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
INTERVALS = {"wilson": wilson, "clopper-pearson": clopper_pearson}


def attack(label=1, prediction=1, robust=True):
    return {"label": label, "prediction": prediction, "robust": robust}


def verified(label=1, prediction=1, verified=True):
    return {"label": label, "prediction": prediction, "verified": verified}


def smoothed(label=1, prediction=1, radius=0.0, abstain=False):
    return {"label": label, "prediction": prediction, "radius": radius, "abstain": abstain}


def test_wilson_interval_of_eight_in_ten_worked_by_hand():
    """(0.8 + 0.19207 ± 1.95996 · sqrt(0.016 + 0.0096036)) / 1.38415 = 0.71674 ± 0.22657."""
    found = wilson(8, 10)
    assert (found.value, found.count, found.n, found.method) == (0.8, 8, 10, "wilson")
    assert (found.low, found.high) == pytest.approx((0.49016, 0.94331), abs=1e-5)


def test_exact_interval_of_no_success_ends_where_all_failing_has_probability_two_and_a_half_percent():
    """(1 - p)^10 = 0.025 at p = 1 - 0.025^(1/10)."""
    found = clopper_pearson(0, 10)
    assert (found.low, found.high) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert clopper_pearson(10, 10).low == pytest.approx(0.025**0.1)


@pytest.mark.parametrize("n", [1, 10, 500, 10_000])
def test_wilson_interval_of_none_and_of_all(n):
    """At count 0 the formula ends at z² / (n + z²); at count n it is the mirror image."""
    assert (wilson(0, n).low, wilson(0, n).high) == (0.0, pytest.approx(Z**2 / (n + Z**2)))
    assert (wilson(n, n).low, wilson(n, n).high) == (pytest.approx(n / (n + Z**2)), 1.0)


@pytest.mark.parametrize(("name", "scipys"), [("wilson", "wilson"), ("clopper-pearson", "exact")])
@pytest.mark.parametrize(("count", "n"), [(0, 7), (1, 7), (250, 500), (467, 500), (9_999, 10_000)])
def test_intervals_agree_with_scipys(name, scipys, count, n):
    other = binomtest(count, n).proportion_ci(0.95, method=scipys)
    found = INTERVALS[name](count, n)
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=1e-9)


@pytest.mark.parametrize("interval", INTERVALS.values(), ids=INTERVALS)
@settings(max_examples=40)
@given(data=st.data())
def test_an_interval_contains_its_value_and_rises_with_the_count(interval, data):
    n = data.draw(st.integers(1, 2000))
    count = data.draw(st.integers(0, n - 1))
    less, more = interval(count, n), interval(count + 1, n)
    assert 0 <= less.low <= less.value <= less.high <= 1
    assert (less.low, less.high) < (more.low, more.high)


@pytest.mark.parametrize("interval", INTERVALS.values(), ids=INTERVALS)
@pytest.mark.parametrize(("count", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(interval, count, n):
    with pytest.raises(ValueError, match=f"0 <= count <= n and n > 0, got count={count}, n={n}"):
        interval(count, n)


def test_mean_interval_of_three_radii_worked_by_hand():
    """Mean 0.5, deviation 0.1, t(0.975, 2) = 4.30265: half width 4.30265 · 0.1 / sqrt(3) = 0.248414."""
    found = mean_interval([0.4, 0.5, 0.6])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.251586, 0.748414), abs=1e-6)
    assert (found.count, found.n, found.method) == (None, 3, "t")


@settings(max_examples=25)
@given(
    values=st.lists(st.floats(0, 4), min_size=2, max_size=30).filter(lambda values: max(values) - min(values) > 1e-3)
)
def test_mean_interval_agrees_with_scipys_t_test(values):
    other = ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((max(0.0, other.low), other.high), rel=1e-6, abs=1e-9)


def test_the_mean_of_one_image_has_no_upper_end_and_json_says_null():
    found = mean_interval([0.3])
    assert (found.low, found.high) == (0.0, math.inf)
    assert found.as_json() == {"value": 0.3, "low": 0.0, "high": None, "count": None}


@pytest.mark.parametrize("values", [[], [0.1, -0.1], [0.1, math.nan], [math.inf]])
def test_mean_interval_refuses_what_is_not_a_radius(values):
    with pytest.raises(ValueError, match="at least one value, all finite and >= 0"):
        mean_interval(values)


def test_attack_metrics_worked_by_hand():
    """Four images: robust; broken; misclassified; misclassified but said to be robust, which counts as wrong."""
    records = [attack(), attack(robust=False), attack(prediction=2, robust=False), attack(prediction=2)]
    for kind in ("pgd", "autoattack"):
        found = summarize(kind, records, None)
        assert found["n"] == 4
        assert {name: (m["value"], m["count"]) for name, m in found["metrics"].items()} == {
            "clean_accuracy": (0.5, 2),
            "robust_accuracy": (0.25, 1),
        }


def test_verified_metrics_worked_by_hand():
    """Of four images three are right and two of those certified; a certificate for a wrong label counts nothing."""
    records = [verified(), verified(), verified(verified=False), verified(prediction=0)]
    for kind in ("ibp", "crown-ibp"):
        metrics = summarize(kind, records, None)["metrics"]
        assert {name: m["count"] for name, m in metrics.items()} == {"clean_accuracy": 3, "verified_accuracy": 2}
        exact = clopper_pearson(2, 4)
        assert metrics["verified_accuracy"] == exact.as_json()
        assert metrics["clean_accuracy"] == wilson(3, 4).as_json()


def test_smoothing_metrics_worked_by_hand():
    """Radii 0.6, 0.25, 0.1 right; 0.9 wrong class; one abstains: 3, 2, 1 of 5 at 0, 0.25, 0.5; mean 0.95 / 5."""
    records = [
        smoothed(radius=0.6),
        smoothed(radius=0.25),
        smoothed(radius=0.1),
        smoothed(radius=0.9, prediction=0),
        smoothed(prediction=-1, abstain=True),
    ]
    metrics = summarize("smoothing", records, certified_at(0.0, 0.25, 0.5, 1.0))["metrics"]
    assert list(metrics) == [
        "certified_accuracy@0",
        "certified_accuracy@0.25",
        "certified_accuracy@0.5",
        "certified_accuracy@1",
        "average_certified_radius",
    ]
    assert [m["count"] for m in metrics.values()] == [3, 2, 1, 0, None]
    assert metrics["average_certified_radius"]["value"] == pytest.approx(0.19)
    assert metrics["certified_accuracy@0.25"] == clopper_pearson(2, 5).as_json()


def test_an_abstention_counts_as_wrong_even_with_the_right_class_and_a_radius():
    """Cohen et al.: abstentions are errors at every radius, 0 included."""
    found = EVALUATORS["smoothing"].metrics([smoothed(abstain=True, radius=0.5)], certified_at(0.0))
    values = {name: metric.values for name, metric in found.items()}
    assert values == {"certified_accuracy@0": (False,), "average_certified_radius": (0.0,)}


@pytest.mark.parametrize("kind", EVALUATORS)
def test_a_summary_is_plain_json(kind):
    record = {"label": 1, "prediction": 1, "robust": True, "verified": True, "radius": 0.3, "abstain": False}
    record |= {"verdict": "verified", "right": {name: [True] * 5 for name in CORRUPTIONS}}
    model = EVALUATORS[kind].settings
    settings = model(kind=kind, epsilon="8/255") if "methods" in model.model_fields else certified_at(0.25)
    found = summarize(kind, [record] * 3, settings)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(m["value"] <= 1 and set(m) == {"value", "low", "high", "count"} for m in found["metrics"].values())


def test_where_a_guarantee_is_claimed_the_interval_is_exact():
    record = {"label": 1, "prediction": 1, "robust": True, "verified": True, "radius": 0.3, "abstain": False}
    found = {
        name: metric.interval
        for kind in ("pgd", "ibp", "smoothing")
        for name, metric in EVALUATORS[kind].metrics([record], certified_at(0.5)).items()
    }
    assert found == {
        "clean_accuracy": "wilson",
        "robust_accuracy": "wilson",
        "verified_accuracy": "clopper-pearson",
        "certified_accuracy@0.5": "clopper-pearson",
        "average_certified_radius": "t",
    }


def test_an_unknown_kind_and_an_empty_ledger_are_refused():
    with pytest.raises(ConfigError, match="unknown evaluator 'fgsm'; choose one of: alpha-crown, apgd, autoattack"):
        summarize("fgsm", [attack()], None)
    with pytest.raises(ValueError, match="n > 0"):
        summarize("pgd", [], None)


def test_predictions_count_if_right_and_not_abstained():
    """Right, wrong, and an abstention: 1 of 3, and 1 of 3 abstained; there are no radii."""
    record = {"label": 1, "prediction": 1, "abstain": False, "radius": 0.0, "mode": "predict"}
    records = [record, {**record, "prediction": 2}, {**record, "prediction": -1, "abstain": True}]
    metrics = summarize("smoothing", records, certified_at(0.0, 0.25))["metrics"]
    assert {name: metric["count"] for name, metric in metrics.items()} == {"smoothed_accuracy": 1, "abstained": 1}
