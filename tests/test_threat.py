"""Radii are exact, and the box is clipped to the pixel range."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hydrabench.errors import ConfigError
from hydrabench.threat import Threat, doubt, linf_box, parse_noise, parse_radius, radius_text


@pytest.mark.parametrize(
    ("text", "radius"),
    [
        ("8/255", Fraction(8, 255)),
        ("0", 0),
        ("0.1", Fraction(1, 10)),
        (0.3, Fraction(3, 10)),
        ("1.5/255", Fraction(1, 170)),
        ("8 / 255", Fraction(8, 255)),
        (" 1/4 ", Fraction(1, 4)),
        ("1e-3", Fraction(1, 1000)),
        ("0.00001", Fraction(1, 100_000)),
        (1e-05, Fraction(1, 100_000)),
        (".5", Fraction(1, 2)),
        ("1.", 1),
        (1, 1),
        ("0.2", Fraction(1, 5)),
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
        ("1e-2000000000", "epsilon '1e-2000000000' is not a radius"),
        ("inf", "epsilon 'inf' is not a radius"),
        (True, "epsilon 'True' is not a radius"),
        ("1/2/3", "epsilon '1/2/3' is not a radius"),
        ("300", "lies outside .0, 1., the pixel range; write a number such as 8/255"),
        ("9/4", "epsilon '9/4' lies outside .0, 1., the pixel range; write a number such as 8/255"),
        ("9" * 5000, "epsilon '9{39}…9{39}' is not a radius"),
    ],
)
def test_what_is_not_a_radius_is_refused_with_the_way_to_write_it(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_radius(text)


def test_an_l2_radius_may_exceed_the_pixel_range():
    assert parse_radius("1.5", norm="l2") == Fraction(3, 2)


def test_an_l2_radius_in_grey_levels_is_refused_and_one_like_an_linf_radius_is_doubted():
    with pytest.raises(ConfigError, match=r"epsilon '64' lies outside \[0, 20\], .*64 of 255 .*write 64/255"):
        parse_radius("64", norm="l2")
    assert "an L2 radius of 8/255 is 0.0314 in pixel units" in doubt("l2", Fraction(8, 255))
    assert doubt("l2", Fraction(36, 255)) is None  # a common one
    assert doubt("linf", Fraction(8, 255)) is None
    assert doubt("l2", Fraction(0)) is None


@given(st.integers(0, 255))
def test_the_float_quotient_of_grey_levels_is_the_fraction(level):
    """`PgdSettings(epsilon=8/255)`: the shortest decimal of the float is 7e-19 off."""
    assert parse_radius(level / 255) == parse_radius(repr(level / 255)) == Fraction(level, 255)


@given(st.decimals(0, 1, places=12))
def test_a_decimal_is_what_is_written(decimal):
    assert parse_radius(f"{decimal:f}") == Fraction(decimal)


@pytest.mark.parametrize(
    ("text", "sigma"), [("1/4", 0.25), ("0.12", 0.12), (0.5, 0.5), ("64/255", 64 / 255), ("1e-2", 0.01), (1, 1.0)]
)
def test_noise_is_read_exactly(text, sigma):
    assert float(parse_noise(text)) == sigma


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64", r"sigma '64' lies outside \(0, 10\], in pixel units; if you mean 64 of 255 grey levels, write 64/255"),
        ("0", r"sigma '0' is no noise level: write a number above 0 such as 0\.25 or 1/4"),
        ("-0.25", r"sigma '-0\.25' is no noise level"),
        ("inf", r"sigma 'inf' is no noise level"),
        ("1e30", r"sigma '1e30' lies outside \(0, 10\], in pixel units; write a number such as 0\.25"),
    ],
)
def test_what_is_no_noise_level_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_noise(text)


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
