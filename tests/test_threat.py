"""Radii are exact, and the box is clipped to the pixel range."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hydrabench.errors import ConfigError
from hydrabench.threat import Threat, linf_box, parse_radius, radius_text


@pytest.mark.parametrize(
    ("text", "radius"),
    [
        ("8/255", Fraction(8, 255)),
        ("0", 0),
        ("0.1", Fraction(1, 10)),
        (0.3, Fraction(3, 10)),
        ("1.5/255", Fraction(1, 170)),
    ],
)
def test_radii_are_read_exactly(text, radius):
    assert parse_radius(text) == radius


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", "epsilon '8' lies outside .0, 1., the pixel range; if you mean 8 of 255 grey levels, write 8/255"),
        ("-1/255", "epsilon '-1/255' is not a radius: a radius is not negative; write .* such as 8/255"),
        ("eight", "epsilon 'eight' is not a radius: write a fraction of the pixel range such as 8/255"),
        ("8/0", "epsilon '8/0' is not a radius"),
        ("nan", "epsilon 'nan' is not a radius"),
        ("1e-2", "epsilon '1e-2' is not a radius"),
    ],
)
def test_what_is_not_a_radius_is_refused_with_the_way_to_write_it(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_radius(text)


def test_an_l2_radius_may_exceed_the_pixel_range():
    assert parse_radius("1.5", norm="l2") == Fraction(3, 2)


@given(st.fractions(0, 1, max_denominator=10_000))
def test_a_written_radius_reads_back_as_itself(radius):
    assert parse_radius(radius_text(radius)) == radius


@pytest.mark.parametrize(
    ("radius", "text"),
    [("8/255", "8/255"), ("0.5", "0.5"), ("0", "0"), ("1", "1"), ("2.0", "2"), ("1/3", "85/255"), ("1/7", "1/7")],
)
def test_radii_are_written_as_the_field_writes_them(radius, text):
    assert radius_text(parse_radius(radius, norm="l2")) == text


def test_the_box_is_clipped_to_the_pixel_range_and_not_to_the_batch():
    """One grey image of 0.5 at radius 0.1: a box clipped to the batch's own range would be a point."""
    lower, upper = linf_box(torch.tensor([[0.5, 0.05, 0.95]]), 0.1)
    assert torch.allclose(lower, torch.tensor([[0.4, 0.0, 0.85]]))
    assert torch.allclose(upper, torch.tensor([[0.6, 0.15, 1.0]]))


def test_a_threat_contains_smaller_ones_and_the_l2_ball_of_its_radius():
    eight, four = Fraction(8, 255), Fraction(4, 255)
    assert Threat("linf", eight).contains(Threat("linf", eight))
    assert Threat("linf", eight).contains(Threat("l2", four))
    assert not Threat("l2", eight).contains(Threat("linf", four))
    assert not Threat("linf", four).contains(Threat("linf", eight))
    assert str(Threat("linf", eight)) == "L∞ 8/255"
