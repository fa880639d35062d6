"""Radii of the laws of noise: golden values, and the worst classifier there is, by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hydrabench.laws import LAWS, radius_of
from hydrabench.smoothing.fills import laplace_of, real_fill

SCIPY = {
    "gaussian": stats.norm(),
    "uniform": stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)),
    "laplace": stats.laplace(scale=1 / math.sqrt(2)),
}


@pytest.mark.parametrize(("law", "radius"), [("gaussian", 2.3263479), ("uniform", 1.6974098), ("laplace", 2.7662180)])
def test_radii_at_p_099_and_sigma_1_are_those_of_the_methods_survey(law, radius):
    """Reference, section 4.1: 2.326; 1.697 is 2 sqrt(3) 0.49; 2.766 is -ln(0.02) / sqrt(2)."""
    assert radius_of(0.99, sigma=1.0, law=law) == pytest.approx(radius, abs=1e-6)


def test_linf_radii_of_an_image_of_cifar10():
    """Reference, section 4.1: half-width 1, p = 0.99, d = 3072: 0.000438; the Gaussian has 2.326 / sqrt(3072)."""
    assert LAWS["uniform"].linf(0.99, 1 / math.sqrt(3), 3072) == pytest.approx(0.000438, abs=5e-7)
    assert LAWS["gaussian"].linf(0.99, 1.0, 3072) == pytest.approx(2.3263479 / 3072**0.5, abs=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_no_classifier_of_one_coordinate_does_worse_than_the_radius_says(law):
    """Brute force over cells of a line: the class keeps the cells of probability p that lose most when x moves by r.

    That is the worst classifier. At the radius it keeps one half, to the width of a cell; it keeps more before.
    """
    p, edges = 0.9, np.linspace(-14, 14, 560_001)
    radius = radius_of(p, sigma=1.0, law=law)
    for share in (0.98, 1.0, 1.02):
        here, there = (np.diff(SCIPY[law].cdf(edges + moved)) for moved in (0.0, share * radius))
        order = np.argsort(np.where(here > 0, there / np.maximum(here, 1e-300), np.inf), kind="stable")
        cells = int(np.searchsorted(np.cumsum(here[order]), p)) + 1
        kept = float(there[order][:cells].sum())
        assert kept == pytest.approx(0.5, abs=1e-3) if share == 1 else (kept > 0.5) == (share < 1)


@pytest.mark.parametrize("coordinates", [2, 5])
def test_no_cube_of_uniform_noise_overlaps_less_than_the_linf_radius_says(coordinates):
    """The worst class loses the cube's part that the shifted cube lacks: p - (1 - (1 - r / 2w)^d) is one half."""
    sigma, p = 0.25, 0.8
    radius, width = LAWS["uniform"].linf(p, sigma, coordinates), 2 * sigma * math.sqrt(3)
    noise = (np.random.default_rng(0).random((200_000, coordinates)) - 0.5) * width
    overlap = np.mean(np.all(np.abs(noise + radius) <= width / 2, axis=1))
    assert p - (1 - overlap) == pytest.approx(0.5, abs=0.006)


@pytest.mark.parametrize("law", LAWS)
@given(p=st.floats(0.5 + 1e-9, 1 - 1e-9), sigma=st.floats(0.01, 10))
@settings(max_examples=40)
def test_a_radius_and_its_probability_are_inverse_and_linf_radii_are_smaller(law, p, sigma):
    radius = radius_of(p, sigma=sigma, law=law)
    assert LAWS[law].probability(radius, sigma) == pytest.approx(p, abs=1e-12)
    assert LAWS[law].linf(p, sigma, 1) == pytest.approx(radius, rel=1e-6)
    assert LAWS[law].linf(p, sigma, 12) <= radius
    assert radius_of(0.5, sigma=sigma, law=law) is None


@pytest.mark.parametrize("law", LAWS)
def test_drawn_noise_has_the_law_and_its_deviation(law):
    rows = torch.empty(1000, 1, 10, 10)
    real_fill(law, (0, "test"), 0.25, torch.device("cpu"), 3)(rows)
    assert stats.kstest(rows.flatten().numpy() / 0.25, SCIPY[law].cdf).pvalue > 1e-6
    assert float(rows.std()) == pytest.approx(0.25, rel=0.02)


def test_uniform_numbers_become_laplace_noise():
    uniform = torch.linspace(-0.999, 0.999, 401, dtype=torch.float64)
    found = laplace_of(uniform.clone(), 0.5).numpy()
    assert found == pytest.approx(SCIPY["laplace"].ppf((uniform.numpy() + 1) / 2) * 0.5, abs=1e-12)


def test_noise_levels_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"out of range: sigma=0"):
        radius_of(0.9, sigma=0, law="uniform")
