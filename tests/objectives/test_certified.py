"""StepLoss of certified bounds by hand, and the mixtures with the clean loss."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import nn
from torch.nn import functional

from hydrabench.bounds import class_margins
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.objectives.certified import certified, kappa_at
from hydrabench.objectives.crown_ibp import CrownIbpSettings
from hydrabench.objectives.ibp import IbpSettings
from hydrabench.runtime import stream

IBP, CROWN_IBP = OBJECTIVES["ibp"].loss, OBJECTIVES["crown-ibp"].loss


def problem():
    network = build_model("cifar_model", (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    return network, torch.rand(6, 1, 8, 8, generator=generator), torch.randint(0, 10, (6,), generator=generator)


def step(epsilon, ramp):
    return TrainingStep(epsilon, ramp, stream("test"))


@pytest.mark.parametrize(("ramp", "kappa", "margin"), [(0.0, 1.0, 0), (0.5, 0.75, 2), (1.0, 0.5, 4)])
def test_the_interval_loss_of_one_pixel_worked_by_hand(ramp, kappa, margin):
    """Logits ±(20 x - 10) at 0.5: clean log 2; the lower bound of f_0 - f_1 is 40 (0.5 - 0.1 ramp) - 20 = -4 ramp."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[20.0], [-20.0]]))
        network[1].bias.copy_(torch.tensor([-10.0, 10.0]))
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    expected = kappa * log(2) + (1 - kappa) * log(1 + exp(margin))
    found = IBP(network, x, y, IbpSettings(name="ibp", epsilon="0.1"), step(0.1 * ramp, ramp))
    assert found.total.item() == pytest.approx(expected, rel=1e-5)
    mixed = CrownIbpSettings(name="crown-ibp", epsilon="0.1", kappa_start=1, kappa_end=0.5)
    assert CROWN_IBP(network, x, y, mixed, step(0.1 * ramp, ramp)).total.item() == pytest.approx(expected, rel=1e-5)


def test_crown_ibp_moves_from_crown_ibp_bounds_to_interval_bounds():
    network, x, y = problem()
    default = CrownIbpSettings(name="crown-ibp", epsilon="8/255")
    for ramp, beta in [(0.25, 0.75), (1.0, 0.0)]:
        expected = functional.cross_entropy(-class_margins(network, x, y, 0.02, beta=beta), y)
        assert torch.equal(CROWN_IBP(network, x, y, default, step(0.02, ramp)).total, expected)
    keeps = CrownIbpSettings(name="crown-ibp", epsilon="8/255", beta_end=1.0)
    expected = functional.cross_entropy(-class_margins(network, x, y, 0.02, beta=1.0), y)
    assert torch.equal(CROWN_IBP(network, x, y, keeps, step(0.02, 1.0)).total, expected)


def test_the_verdicts_are_those_of_the_bounds_of_the_last_step():
    """At this radius CROWN-IBP certifies images that intervals do not."""
    network, x, _ = problem()
    y = network(x).argmax(1)
    found = {}
    for beta in (0.0, 1.0):
        keeps = CrownIbpSettings(name="crown-ibp", epsilon="8/255", beta_end=beta)
        found[beta] = OBJECTIVES["crown-ibp"].verdicts(network, x, y, keeps, step(0.0015, 1.0))
        assert torch.equal(found[beta], certified(class_margins(network, x, y, 0.0015, beta=beta), y))
    ibp = OBJECTIVES["ibp"].verdicts(network, x, y, IbpSettings(name="ibp", epsilon="8/255"), step(0.0015, 1.0))
    assert torch.equal(ibp, found[0.0])
    assert found[1.0].sum() > found[0.0].sum()


def test_ibp_is_crown_ibp_at_the_end_of_its_ramp():
    network, x, y = problem()
    mixed = CrownIbpSettings(name="crown-ibp", epsilon="8/255", kappa_start=0.9, kappa_end=0.3)
    same = IbpSettings(name="ibp", epsilon="8/255", kappa_start=0.9, kappa_end=0.3)
    given = step(8 / 255, 1.0)
    assert torch.equal(IBP(network, x, y, same, given).total, CROWN_IBP(network, x, y, mixed, given).total)


def test_the_clean_logits_carry_gradients_only_where_the_loss_needs_them():
    network, x, y = problem()
    default = CrownIbpSettings(name="crown-ibp", epsilon="8/255")
    assert not CROWN_IBP(network, x, y, default, step(0.02, 0.5)).logits.requires_grad
    assert IBP(network, x, y, IbpSettings(name="ibp", epsilon="8/255"), step(0.02, 0.5)).logits.requires_grad


def test_kappa_moves_in_a_straight_line_with_the_radius():
    settings = IbpSettings(name="ibp", epsilon="8/255", kappa_start=0.8, kappa_end=0.2)
    assert [kappa_at(ramp, settings) for ramp in (0, 0.5, 1)] == pytest.approx([0.8, 0.5, 0.2])


def test_an_image_is_certified_if_all_margins_but_its_own_are_positive():
    """Zero is not positive, and what is not a number is not verified."""
    lower = torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.0, -0.1], [0.5, 0.0, 0.0], [0.0, 1.0, torch.nan]])
    assert certified(lower, torch.tensor([0, 1, 2, 0])).tolist() == [True, False, False, False]
