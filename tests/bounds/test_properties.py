"""VNN-LIB properties: boxes and linear constraints, as cases in which they are violated."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from hydrabench.bounds.properties import read_property
from hydrabench.bounds.vnnlib import robustness_property
from hydrabench.errors import DataError

BOX = """(declare-const X_0 Real) (declare-const X_1 Real)
(declare-const Y_0 Real) (declare-const Y_1 Real)
; a comment (with parentheses
(assert (<= X_0 0.1)) (assert (>= X_0 -1e-1)) (assert (<= X_1 2)) (assert (>= X_1 0))
"""


def as_lists(cases):
    return [(case.lower.tolist(), case.upper.tolist(), case.rows.tolist(), case.bounds.tolist()) for case in cases]


def test_atoms_conjoin_and_become_rows_at_most_bounds():
    (case,) = read_property(BOX + "(assert (<= Y_0 Y_1)) (assert (>= Y_1\n 3.5))")
    assert case.rows.tolist() == [[1.0, -1.0], [0.0, -1.0]]
    assert case.bounds.tolist() == [0.0, -3.5]
    assert case.upper.tolist() == [float(Fraction("0.1")), 2.0]
    assert Fraction(case.lower[0].item()) <= Fraction("-0.1")
    assert Fraction(case.upper[0].item()) >= Fraction("0.1")


def test_a_disjunction_makes_cases_and_may_split_inputs_and_outputs():
    text = "(assert (or (and (<= X_0 0) (>= Y_0 1)) (and (>= X_0 0.05) (<= Y_0 Y_1) (<= Y_0 2))))"
    first, second = read_property(BOX + text)
    assert (first.upper[0], first.rows.tolist(), first.bounds.tolist()) == (0.0, [[-1.0, 0.0]], [-1.0])
    assert second.rows.tolist() == [[1.0, -1.0], [1.0, 0.0]]
    assert second.lower[0] <= 0.05 < second.upper[0]
    both = BOX + "(assert (or (<= Y_0 1) (<= Y_1 1))) (assert (or (>= Y_0 2) (>= Y_1 2) (<= Y_0 Y_1)))"
    assert len(read_property(both)) == 6


def test_our_own_properties_read_as_they_were_written():
    lower = torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(0))
    upper = (lower + 0.1).clamp(max=1)
    cases = read_property(robustness_property(lower, upper, label=1, classes=4, comments=("image 3",)))
    assert len(cases) == 3
    for case, rival in zip(cases, (0, 2, 3), strict=True):
        assert torch.equal(case.lower, lower.flatten().double())
        assert torch.equal(case.upper, upper.flatten().double())
        assert case.rows.tolist() == [[float((j == 1) - (j == rival)) for j in range(4)]]
        assert case.bounds.tolist() == [0.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(assert (<= Y_0 1)", "a parenthesis is not closed"),
        ("(assert (<= Y_0 1)))", "a parenthesis is closed that was not opened"),
        ("(check-sat)", "neither declare-const nor assert"),
        ("(vnnlib-version <2.0>)", "is no VNN-LIB 1.0"),
        ("(assert (<= X_0 Y_0))", "compares inputs with inputs or outputs"),
        ("(assert (<= Y_2 0))", "uses Y_2, which is not declared"),
        ("(assert (= Y_0 0))", "known are and, or"),
        ("(assert (<= Y_0 (* 2 Y_1)))", "where a variable or a number belongs"),
        ("(assert (<= Y_0 1e9999))", "where a variable or a number belongs"),
        ("(assert yes)", "which is no formula"),
        ("(assert (or (<= Y_0 1) (<= Y_1 1)))" * 14, "has 16,384 cases, at most 10,000"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(text, said):
    with pytest.raises(DataError, match=said.replace("(", r"\(")) as caught:
        read_property(BOX + text)
    assert "\n" not in str(caught.value)


def test_an_input_without_a_bound_is_refused():
    with pytest.raises(DataError, match="leaves X_0 without a lower or an upper bound"):
        read_property(BOX.replace("(assert (<= X_0 0.1))", "") + "(assert (<= Y_0 1))")
