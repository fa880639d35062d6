"""What the gate calls a regression: exactly where verdicts are deterministic, by a test where chance has a part."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from hydrabench.ledger import VerifiedRecord
from hydrabench.reporting.baseline import ledger_of
from hydrabench.reporting.comparison import Tolerance, compare, fewest_losses, worse_by_chance
from hydrabench.reporting.evaluations import read_evaluation

MANY = {"dataset": {"name": "digits", "split": "test", "n": 100}}


@pytest.fixture
def ledger(tmp_path, write_run):
    """The ledger of a run as `write_run` of this folder's conftest makes it."""
    count = iter(range(1000))

    def make(kind="ibp", **about):
        return ledger_of(read_evaluation(write_run(tmp_path / f"run{next(count)}", kind, **about)))

    return make


def found(new, old, metric="verified", **tolerance):
    (one,) = compare([new], [old], Tolerance(**tolerance), metric=metric).comparisons
    return one


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (15, 5, 0.0206947),
        (12, 5, 0.0717316),
        (8, 2, 0.0546875),
        (5, 0, 0.03125),
        (4, 0, 0.0625),
        (60, 40, 0.0284440),
        (40, 22, 0.0150079322),
        (10, 2, 0.0192871094),
        (0, 0, 1.0),
    ],
)
def test_the_probability_of_so_many_losses_by_chance(lost, gained, p):
    """Numbers of the methods dossier, section 7; the formula is a binomial tail."""
    assert worse_by_chance(lost, gained) == pytest.approx(p, abs=5e-8)


@given(lost=st.integers(0, 200), gained=st.integers(0, 200))
def test_the_test_is_scipys_binomial_test(lost, gained):
    expected = binomtest(lost, lost + gained, 0.5, "greater").pvalue if lost + gained else 1.0
    assert worse_by_chance(lost, gained) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("alpha", "losses"), [(0.05, 5), (0.01, 7), (0.001, 10), (0.5, 1)])
def test_how_many_losses_a_finding_needs(alpha, losses):
    assert fewest_losses(alpha) == losses
    assert worse_by_chance(losses, 0) <= alpha < worse_by_chance(losses - 1, 0)


def test_an_image_that_is_lost_is_a_regression_though_another_is_gained(ledger):
    one = found(ledger(fails=[3]), ledger(fails=[7]))
    assert (one.old, one.new, one.n, one.outcome, one.p_value) == (9, 9, 10, "regressed", None)
    assert [(change.index, change.direction) for change in one.changes] == [(3, "lost"), (7, "gained")]
    assert one.changes[0].old == {"verified": True, "lower": 0.1}
    assert one.changes[0].new == {"verified": False, "lower": -0.1}


@pytest.mark.parametrize(
    ("fails", "drop", "outcome"),
    [
        ([3], Fraction(0), "passed"),
        ([3, 4], Fraction(0), "regressed"),
        ([3, 4], Fraction(1, 10), "passed"),
        ([3, 4, 5], Fraction(1, 10), "regressed"),
        ([], Fraction(0), "passed"),
    ],
)
def test_with_a_drop_allowed_images_gained_make_up_for_images_lost(ledger, fails, drop, outcome):
    """The baseline lacks image 7: one gained. A drop of exactly what is allowed passes."""
    assert found(ledger(fails=fails), ledger(fails=[7]), max_drop=drop).outcome == outcome


def test_a_verdict_at_a_margin_next_to_0_may_turn_and_is_listed(ledger):
    def near(lower):
        def edit(records):
            return [replace(r, lower=lower, verified=lower > 0) if r.index == 4 else r for r in records]

        return edit

    before = ledger(edit=near(4e-6))
    one = found(ledger(edit=near(-3e-6)), before)
    assert (one.outcome, one.count("rounding"), one.count("lost")) == ("passed", 1, 0)
    assert found(ledger(edit=near(-3e-3)), ledger(edit=near(2e-3))).outcome == "regressed"


@pytest.mark.parametrize(
    ("lost", "gained", "outcome"),
    [
        (6, 0, "undecided"),
        (7, 0, "regressed"),
        (0, 6, "passed"),
        (0, 0, "passed"),
        (12, 5, "passed"),
        (20, 5, "regressed"),
    ],
)
def test_where_chance_has_a_part_a_test_decides_and_too_few_changes_are_undecided(ledger, lost, gained, outcome):
    """At α = 0.01 seven losses without a gain are needed; 12 against 5 have p = 0.07."""
    old = ledger("smoothing", fails=range(50, 50 + gained), header=MANY)
    new = ledger("smoothing", fails=range(lost), header=MANY)
    one = found(new, old, "certified_accuracy@0.25")
    assert (one.count("lost"), one.count("gained"), one.outcome) == (lost, gained, outcome)
    assert one.p_value == pytest.approx(worse_by_chance(lost, gained))


def test_a_drop_that_is_allowed_passes_where_chance_has_a_part_too(ledger):
    old, new = ledger("smoothing", header=MANY), ledger("smoothing", fails=range(10), header=MANY)
    assert found(new, old, "certified_accuracy@0.25", max_drop=Fraction(1, 10)).outcome == "passed"
    assert found(new, old, "certified_accuracy@0.25", max_drop=Fraction(9, 100)).outcome == "regressed"
    assert found(new, old, "certified_accuracy@0.25", alpha=0.0005).outcome == "undecided"


def test_bounds_under_a_time_limit_are_tested_too(ledger):
    old, new = ledger("alpha-crown", time_limit=5), ledger("alpha-crown", fails=[1], time_limit=5)
    assert found(new, old).outcome == "undecided"
    assert found(ledger("alpha-crown", fails=[1]), ledger("alpha-crown")).outcome == "regressed"


def test_a_prefix_is_compared_on_the_images_that_both_have(ledger):
    five = ledger(fails=[2], header={"dataset": {"name": "digits", "split": "test", "n": 5}})
    one = found(five, ledger(fails=[2, 8]))
    assert (one.n, one.held, one.old, one.new, one.outcome) == (5, 10, 4, 4, "passed")


def test_the_clean_accuracy_of_a_network_is_shown_once(ledger):
    old = [ledger("pgd"), ledger("ibp")]
    verdict = compare([ledger("pgd"), ledger("ibp")], old, Tolerance())
    assert [one.metric for one in verdict.comparisons] == ["clean_accuracy", "robust_accuracy", "verified_accuracy"]
    worse = compare([ledger("pgd"), ledger("ibp", wrong=[1])], old, Tolerance())
    assert [one.metric for one in worse.comparisons].count("clean_accuracy") == 2
    assert worse.outcome == "regressed"


@pytest.mark.parametrize(("metric", "names"), [
    ("verified", {"verified_accuracy"}), ("clean", {"clean_accuracy"}), ("clean_accuracy", {"clean_accuracy"}),
    ("certified", {"certified_accuracy@0.25", "certified_accuracy@0.5"}),
    ("certified_accuracy", {"certified_accuracy@0.25", "certified_accuracy@0.5"}),
    ("certified_accuracy@0.5", {"certified_accuracy@0.5"}),
])  # fmt: skip
def test_a_metric_is_named_by_its_beginning(ledger, metric, names):
    both = [ledger("ibp"), ledger("smoothing")]
    verdict = compare(both, both, Tolerance(), metric=metric)
    assert {one.metric for one in verdict.comparisons} == names
    assert verdict.outcome == "passed"


def reasons(verdict):
    assert verdict.outcome == "not comparable"
    return [refusal.reason for refusal in verdict.refusals]


@pytest.mark.parametrize(
    ("kind", "about", "reason"),
    [
        ("ibp", {"epsilon": "4/255"}, r"its settings are not those of the baseline: epsilon is 4/255 and was 8/255"),
        ("pgd", {}, r"it is pgd-50@1 at L∞ 8/255, the baseline holds ibp@1 at L∞ 8/255"),
        ("ibp", {"header": {"precision": "float64"}}, "precision is float64 and was float32"),
        ("ibp", {"header": {"dataset": {"name": "svhn", "split": "test", "n": 10}}},
         "it is about svhn test, the baseline about digits test"),
        ("ibp", {"edit": lambda records: [replace(r, label=9, prediction=9) for r in records]},
         "has other labels for images 0, 1, "),
        ("ibp", {"edit": lambda records: [replace(records[0], input_sha="ab" * 32), *records[1:]]},
         "has other pixels for image 0; were the data changed"),
    ],
)  # fmt: skip
def test_what_is_not_the_same_measurement_is_not_compared(ledger, kind, about, reason):
    (given,) = reasons(compare([ledger(kind, **about)], [ledger()], Tolerance()))
    assert reason in given


def test_images_that_the_baseline_never_judged_are_not_compared(ledger):
    fives = {"dataset": {"name": "digits", "split": "test", "n": 2, "first": 20, "step": 5, "chosen": "1 in 5 from 20"}}

    def later(records):
        return [replace(record, index=20 + 5 * record.index) for record in records]

    (given,) = reasons(compare([ledger(header=fives, edit=later)], [ledger()], Tolerance()))
    assert given == "it judged none of the images of the baseline"


def test_a_verdict_that_depends_on_its_block_is_compared_on_the_same_images_only(ledger):
    """The first version of AutoAttack drew for a block of images, so that fewer of them are another attack."""
    five = ledger("autoattack", version=1, header={"dataset": {"name": "digits", "split": "test", "n": 5}})
    (given,) = reasons(compare([five], [ledger("autoattack", version=1)], Tolerance()))
    assert "depend on the other images of a block; it judged digits test, first 5 images" in given


def test_of_several_networks_the_name_decides(ledger):
    old = [ledger(name="a"), ledger(name="b", fails=[1])]
    assert compare([ledger(name="b", fails=[1]), ledger(name="a")], old, Tolerance()).outcome == "passed"
    (given,) = reasons(compare([ledger(name="c")], old, Tolerance()))
    assert given == "it is about c, the baseline has ibp@1 at L∞ 8/255 of a, b; which one is not clear"
    assert compare([ledger(name="c")], old[:1], Tolerance()).outcome == "passed"


def test_a_number_that_is_missing_is_not_passed(ledger):
    old = [ledger("ibp"), ledger("pgd")]
    (given,) = reasons(compare([ledger("ibp")], old, Tolerance()))
    assert given.startswith("no run is pgd-50@1 at L∞ 8/255 of dense on digits test, first 10 images; run it")
    assert compare([ledger("ibp")], old, Tolerance(), metric="verified").outcome == "passed"
    assert reasons(compare([ledger("ibp")], old, Tolerance(), metric="verifed")) == [
        "none has a metric 'verifed'; they have clean_accuracy, verified_accuracy"
    ]


def test_a_regression_that_was_found_counts_whatever_else_cannot_be_compared(ledger):
    runs = [ledger("ibp", fails=[0]), ledger("pgd")]
    verdict = compare(runs, [ledger("ibp")], Tolerance())
    assert verdict.refusals
    assert verdict.outcome == "regressed"


def test_a_protocol_of_another_version_is_not_compared(ledger):
    old = replace(ledger("pgd", version=1), protocol="pgd-50@7")
    new = replace(ledger("pgd", version=1), protocol="pgd-50@7")
    (given,) = reasons(compare([new], [old], Tolerance()))
    assert "make the protocol pgd-50@1, not pgd-50@7" in given


def test_a_record_that_this_version_does_not_know_is_not_compared(ledger):
    old = ledger()
    broken = replace(old, lines=({**old.lines[0], "lower": None}, *old.lines[1:]))
    (given,) = reasons(compare([ledger()], [broken], Tolerance()))
    assert "has lower null" in given
    assert VerifiedRecord.__name__ not in given
