"""The check that an installed release of auto_LiRPA passes before it is believed."""

from __future__ import annotations

import pytest
import torch

from hydrabench.bounds import Search, lirpa, lirpa_alpha_margins, lirpa_margins
from hydrabench.bounds.lirpa import check, margins, modules, search
from hydrabench.errors import HydrabenchError


@pytest.fixture
def unchecked():
    """As if nothing had been checked in this process; what the test checks is forgotten, too."""
    checks = (margins._require_agreement, search._require_improvement)
    for each in checks:
        each.cache_clear()
    yield
    for each in checks:
        each.cache_clear()


def off_by(gap, only="crown"):
    def theirs(method):
        return lambda *problem: check.OURS[method](*problem) + (gap if method == only else 0)

    return theirs


def test_the_methods_differ_on_the_small_network_and_each_layer_has_neurons_of_both_kinds():
    """So that one cannot pass for another, and relaxed neurons are among those that are bounded."""
    network, x, y = check.small_problem()
    ibp, crown_ibp, crown = (bound(network, x, y, check.EPSILON) for bound in check.OURS.values())
    assert (crown_ibp - ibp > 0.05).all()
    assert (crown - crown_ibp > 0.05).all()


def test_the_small_network_takes_no_draw_and_is_the_same_each_time():
    torch.manual_seed(3)
    first, x, _ = check.small_problem()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first(x), check.small_problem()[0](x))


@pytest.mark.parametrize("method", check.OURS)
def test_a_release_whose_bounds_differ_is_refused_by_number_and_method(method):
    check.require_agreement(off_by(5e-5, method), "9.9")
    for gap in (2e-4, -2e-4, torch.nan):
        with pytest.raises(
            HydrabenchError, match=rf"^auto_LiRPA 9\.9 disagrees with our {method} bounds .* by .*==0\.3"
        ):
            check.require_agreement(off_by(gap, method), "9.9")


def test_a_release_that_is_driven_otherwise_is_refused():
    def theirs(*problem):
        raise TypeError("unexpected keyword argument 'C'")

    with pytest.raises(
        HydrabenchError, match=r"auto_LiRPA 9\.9 cannot be driven .*keyword argument 'C'.*auto_LiRPA==0\.3"
    ):
        check.require_agreement(lambda method: theirs, "9.9")


def test_alpha_crown_has_to_lie_above_crown_and_below_what_points_reach():
    network, x, y = check.small_problem()
    with torch.no_grad():
        crown = check.OURS["crown"](network, x, y, check.EPSILON)
    reached = check._reached(network, x, y)
    assert (crown < reached).all()
    check.require_improvement(lambda *problem: (crown + reached) / 2, "9.9")
    for found in (crown, crown - 1e-3, torch.full_like(crown, torch.nan)):  # the first: no slope ever moved
        with pytest.raises(HydrabenchError, match=r"auto_LiRPA 9\.9 finds no better alpha-crown bounds"):
            check.require_improvement(lambda *problem, found=found: found, "9.9")
    with pytest.raises(
        HydrabenchError, match=r"auto_LiRPA 9\.9 has alpha-crown bounds .* that points of the ball undercut"
    ):
        check.require_improvement(lambda *problem: reached + 1e-3, "9.9")


def test_the_installed_release_is_checked_once_by_its_fast_ways(auto_lirpa, unchecked, monkeypatch):
    asked = []
    require = check.require_agreement
    monkeypatch.setattr(margins, "require_agreement", lambda *args: asked.append(args[1]) or require(*args))
    network, x, y = check.small_problem()
    for method in ("ibp", "crown"):
        lirpa_margins(network, x, y, 0.01, method=method)
    lirpa.require_auto_lirpa()
    assert asked == [auto_lirpa.__version__]
    assert lirpa.bounded_module(network, x).conv_mode == "patches"


def test_an_installed_release_that_computes_otherwise_is_refused(auto_lirpa, unchecked, monkeypatch):
    right = auto_lirpa.BoundedModule.compute_bounds

    def too_high(self, *args, **options):
        lower, *others = right(self, *args, **options)
        return lower + 1e-3, *others

    monkeypatch.setattr(auto_lirpa.BoundedModule, "compute_bounds", too_high)
    network, x, y = check.small_problem()
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(HydrabenchError, match=r"auto_LiRPA \S+ disagrees with our ibp bounds"):
            lirpa_margins(network, x, y, 0.01, method="ibp")
    with pytest.raises(HydrabenchError, match=r"auto_LiRPA \S+ disagrees with our ibp bounds"):
        lirpa_alpha_margins(network, x, y, 0.01, search=Search())


def test_options_under_other_names_are_refused(auto_lirpa, unchecked, monkeypatch):
    monkeypatch.setattr(margins, "OPTIONS", modules.OPTIONS | {"thin_intermediate_bounds": False})
    with pytest.raises(HydrabenchError, match=r"auto_LiRPA \S+ has no options thin_intermediate_bounds; install"):
        lirpa.require_auto_lirpa()


@pytest.mark.parametrize("slopes", ["output", "all"])
def test_slopes_that_cannot_move_are_noticed(auto_lirpa, unchecked, monkeypatch, slopes):
    """What newer torch does to release 0.3 without its bridge."""
    from contextlib import nullcontext

    search._require_improvement(slopes)
    search._require_improvement.cache_clear()
    monkeypatch.setattr(search, "slopes_can_leave_their_ends", nullcontext)
    with pytest.raises(HydrabenchError, match="finds no better alpha-crown bounds of a small network than CROWN's"):
        search._require_improvement(slopes)
