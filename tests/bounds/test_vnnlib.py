"""VNN-LIB properties, read back as the standard says and not as we write them."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.bounds.vnnlib import exact_decimal, robustness_property

floats32 = st.floats(0, 1, width=32)


def corner(*values):
    return torch.tensor(values).reshape(1, 1, -1)


def test_the_property_of_two_pixels_and_three_classes_word_by_word():
    """0.5 and 0.75 are binary fractions; an image of class 1 must give class 0 or class 2 at least as high a logit."""
    text = robustness_property(corner(0.0, 0.5), corner(0.25, 0.75), label=1, classes=3, comments=("image 7",))
    assert text == (
        "; image 7\n"
        "(declare-const X_0 Real)\n(declare-const X_1 Real)\n"
        "(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n(declare-const Y_2 Real)\n"
        "(assert (>= X_0 0.0))\n(assert (<= X_0 0.25))\n"
        "(assert (>= X_1 0.5))\n(assert (<= X_1 0.75))\n"
        "(assert (or\n    (and (>= Y_0 Y_1))\n    (and (>= Y_2 Y_1))\n))\n"
    )


@given(values=st.lists(st.tuples(floats32, floats32), min_size=1, max_size=6), label=st.integers(0, 3))
@settings(max_examples=40)
def test_the_box_is_read_back_to_the_last_bit(read_property, values, label):
    lower, upper = corner(*map(min, values)), corner(*map(max, values))
    asserted = read_property(robustness_property(lower, upper, label=label, classes=4))
    assert asserted.lower == [Fraction(value) for value in lower.flatten().tolist()]
    assert asserted.upper == [Fraction(value) for value in upper.flatten().tolist()]


def test_pixels_are_numbered_row_by_row_and_channel_by_channel(read_property):
    """Element (c, h, w) of a 2 x 3 x 4 image is X_(12 c + 4 h + w)."""
    lower = torch.arange(24.0).reshape(2, 3, 4) / 32
    asserted = read_property(robustness_property(lower, lower, label=0, classes=2))
    assert asserted.lower[12 + 2 * 4 + 3] == Fraction(float(lower[1, 2, 3]))


@pytest.mark.parametrize("label", range(3))
def test_the_outputs_asserted_are_those_that_do_not_prefer_the_label(read_property, label):
    """A tie is a violation: a verified margin is above 0."""
    asserted = read_property(robustness_property(corner(0.0), corner(1.0), label=label, classes=3))
    for winner in range(3):
        logits = [float(j == winner) for j in range(3)]
        assert asserted.holds([0.5], logits) == (winner != label)
    assert asserted.holds([0.5], [1.0, 1.0, 1.0])
    assert not asserted.holds([1.5], [1.0, 1.0, 1.0])


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_decimal_equals_its_number_and_has_no_exponent(value):
    text = exact_decimal(value)
    assert Fraction(text) == Fraction(value)
    assert "." in text
    assert "e" not in text.lower()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="must be finite"):
        exact_decimal(value)


def test_what_is_no_box_or_no_class_is_refused():
    with pytest.raises(ValueError, match="not a box"):
        robustness_property(corner(0.5), corner(0.25), label=0, classes=2)
    with pytest.raises(ValueError, match="not a box"):
        robustness_property(corner(float("nan")), corner(1.0), label=0, classes=2)
    with pytest.raises(ValueError, match=r"label=2, must be in \[0, 2\)"):
        robustness_property(corner(0.0), corner(1.0), label=2, classes=2)
