"""Settings of smoothing: protocol ids that tell everything apart, and the automatic grid."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import NormalDist

import pytest
from pydantic import ValidationError

from hydrabench.evaluators import SmoothingSettings
from hydrabench.evaluators.smoothing_settings import largest_radius, radii_text
from hydrabench.smoothing import RULES, Plan


def test_protocols_spell_out_what_differs():
    assert SmoothingSettings().protocol == "smoothing-cohen@4"
    assert SmoothingSettings(mode="adaptive").protocol == "smoothing-adaptive@5"
    assert SmoothingSettings(mode="adaptive", version=2).protocol == "smoothing-adaptive@2"
    assert SmoothingSettings(mode="adaptive", rigor="discrete").protocol == "smoothing-adaptive-discrete@5"
    spelt = SmoothingSettings(mode="adaptive", label_aware=True, radii=(0.5,), samples=1000, seed=2)
    assert spelt.protocol == "smoothing-adaptive-label-aware-n1000-r0.5-s2@5"


def test_the_grid_is_part_of_the_protocol_where_the_draws_depend_on_it():
    """Not of Cohen's, which draws all samples whatever is asked."""
    grids = [(0.0, 0.25), (0.25,), (0.0, 0.25, 0.5, 0.75), (0.0, 0.1, 0.4), (0.0, 0.2, 0.4)]
    assert len({SmoothingSettings(mode="adaptive", radii=grid).protocol for grid in grids}) == len(grids)
    assert len({SmoothingSettings(radii=grid).protocol for grid in grids}) == 1


def test_different_settings_never_share_a_protocol():
    several = [{}, {"rigor": "discrete"}, {"n0": 50}, {"samples": 10_000}, {"alpha": 0.01}, {"seed": 1}]
    several += [{"mode": mode} for mode in ("adaptive", "predict")]
    several += [{"mode": "adaptive", "label_aware": True}, {"mode": "adaptive", "radii": (0.5,)}]
    several += [{"mode": "adaptive", "tolerance": 0.02}, {"mode": "adaptive", "tolerance": 0.05}, {"randomized": True}]
    several += [{"law": "uniform"}, {"law": "laplace"}]
    several += [{"version": version} for version in (1, 2)] + [
        {"mode": "adaptive", "version": version} for version in (3, 4)
    ]
    for one, other in combinations(several, 2):
        assert SmoothingSettings(**one).protocol != SmoothingSettings(**other).protocol


@pytest.mark.parametrize(
    ("radii", "text"),
    [
        ((0.5,), "0.5"),
        ((0.0, 0.25), "0+0.25"),
        ((0.0, 0.25, 0.5), "0to0.5by0.25"),
        ((0.0, 0.1, 0.4), "0+0.1+0.4"),
        ((0.1, 0.2, 0.30000000000000004), "0.1to0.3by0.1"),
        ((0.5, 0.25, 0.0), "0.5+0.25+0"),
    ],
)
def test_radii_are_written_shortly(radii, text):
    assert radii_text(radii) == text


def test_plain_settings_spell_out_the_defaults():
    assert SmoothingSettings(samples=10).plain() == {
        "kind": "smoothing", "mode": "cohen", "sigma": 0.25, "law": "gaussian", "n0": 100, "samples": 10,
        "alpha": 0.001, "radii": [0.0, 0.25, 0.5, 0.75], "seed": 0, "rigor": "standard", "label_aware": False,
        "tolerance": None, "randomized": False, "version": 4,
    }  # fmt: skip


@pytest.mark.parametrize("samples", [1, 50, 200, 1000, 100_000])
@pytest.mark.parametrize("mode", RULES)
def test_the_largest_radius_is_what_the_rule_gives_if_all_draws_agree(mode, samples):
    rule = RULES[mode](Plan(samples, 0.001, 0.5, (9.0,)))
    bound = rule.look(samples, samples, 0.0).p_lower
    expected = 0.5 * NormalDist().inv_cdf(bound) if bound > 0.5 else 0.0
    assert largest_radius(sigma=0.5, samples=samples, alpha=0.001) == pytest.approx(expected, rel=1e-9)


def test_the_automatic_grid_ends_at_the_largest_radius():
    """Cohen: 3.81 sigma, so 0.953 at 0.25 and 3.81 at 1; with 3 draws nothing is certified, and 0 is left."""
    assert SmoothingSettings(radii="auto").radii == (0.0, 0.25, 0.5, 0.75)
    wide = SmoothingSettings(sigma=1.0, radii="auto").radii
    assert (wide[0], wide[-1], len(wide)) == (0.0, 3.75, 16)
    assert SmoothingSettings(sigma=1.0, samples=3, radii="auto").radii == (0.0,)
    assert math.isclose(largest_radius(sigma=1.0, samples=100_000, alpha=0.001), 3.8114, abs_tol=1e-4)


def test_settings_that_a_mode_cannot_use_are_refused():
    for values, message in (
        ({"mode": "adaptive", "radii": ()}, "stops when the radii are settled; give at least one"),
        ({"label_aware": True}, "label_aware needs mode adaptive; mode cohen draws all"),
        ({"mode": "fast"}, "'cohen', 'adaptive' or 'predict'"),
        ({"mode": "betting"}, "mode betting is gone, because adaptive takes fewer draws; certify again"),
        ({"version": 3}, "mode cohen has no version 3; versions are 1, 2 and 4"),
        ({"tolerance": 0.02}, "tolerance is for mode adaptive; without it all samples are drawn"),
        ({"mode": "adaptive", "version": 3, "tolerance": 0.02}, "tolerance is for mode adaptive"),
        (
            {"mode": "adaptive", "tolerance": 0.02, "sigma": 1.5},
            r"tolerance 0.02 is below 0.03, .*; give more",
        ),
        ({"mode": "adaptive", "randomized": True}, "randomized is for mode cohen, whose bound has one look"),
        (
            {"law": "uniform", "rigor": "discrete"},
            "uniform noise is real noise; rigor discrete has Gaussian",
        ),
        ({"sigma": -1, "radii": "auto"}, "sigma"),
    ):
        with pytest.raises(ValidationError, match=message):
            SmoothingSettings(**values)


@pytest.mark.parametrize("radii", [(0.5, 0.25), (0.0, 0.0), (0.25, 0.5, 0.5)])
def test_radii_have_one_order_so_that_equal_grids_are_one_protocol(radii):
    with pytest.raises(ValidationError, match=r"ascend and differ, got .*; sort them, each once"):
        SmoothingSettings(radii=radii)


def test_what_is_infinite_is_refused_because_no_ledger_can_hold_it():
    for infinite in ({"radii": (0.0, math.inf)}, {"sigma": math.inf}):
        with pytest.raises(ValidationError, match="finite number"):
            SmoothingSettings(**infinite)
