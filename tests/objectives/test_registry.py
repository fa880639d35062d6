"""Losses against their formulas, gradients that reach what is trained."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import nn
from torch.nn import functional

from hydrabench.bounds import class_margins
from hydrabench.config import CrownIbpObjective, NaturalObjective, TradesObjective
from hydrabench.masking import attach_masks, prunable_layers, score_masks, set_phase, shared_masks
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, Step
from hydrabench.objectives.trades import divergence
from hydrabench.runtime import stream

SETTINGS = {
    "natural": NaturalObjective(name="natural"),
    "trades": TradesObjective(name="trades", epsilon="8/255", steps=3),
    "crown-ibp": CrownIbpObjective(name="crown-ibp", epsilon="8/255"),
}


def problem(arch="cifar_model_bn"):
    network = build_model(arch, (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    return network, torch.rand(6, 1, 8, 8, generator=generator), torch.randint(0, 10, (6,), generator=generator)


def step(epsilon=8 / 255, ramp=1.0) -> Step:
    return Step(epsilon, ramp, stream("test"))


def test_the_divergence_of_two_coins_worked_by_hand():
    """KL((1/2, 1/2) ‖ (1/4, 3/4)) = 1/2 log 2 + 1/2 log(2/3)."""
    clean = torch.tensor([[0.0, 0.0]])
    other = torch.tensor([[0.0, log(3.0)]])
    assert divergence(clean, other).item() == pytest.approx(0.5 * log(2) + 0.5 * log(2 / 3), rel=1e-6)
    assert divergence(other, other).item() == pytest.approx(0, abs=1e-7)


def test_trades_at_radius_zero_is_the_natural_loss():
    network, x, y = problem("cifar_model")
    natural = OBJECTIVES["natural"].loss(network, x, y, SETTINGS["natural"], step())
    trades = OBJECTIVES["trades"].loss(network, x, y, SETTINGS["trades"], step(0.0, 0.0))
    assert trades.total.item() == pytest.approx(natural.total.item(), abs=1e-6)
    assert torch.equal(trades.logits, natural.logits)


def test_trades_penalises_what_the_attack_finds():
    network, x, y = problem("cifar_model")
    natural = functional.cross_entropy(network(x), y)
    trades = OBJECTIVES["trades"].loss(network, x, y, SETTINGS["trades"], step())
    random_start = network((x + 0.001 * torch.randn(x.shape, generator=stream("test"))).clamp(0, 1))
    weak = divergence(network(x), random_start).mean()
    assert trades.total > natural + 6 * weak * 10


@pytest.mark.parametrize(("objective", "passes"), [("natural", 1), ("trades", 2), ("crown-ibp", 1)])
def test_batch_norm_counts_these_train_mode_passes_per_step(objective, passes):
    """TRADES shares one clean pass between both terms: 2 where the original counts 4 (oracle O10, pitfall P7)."""
    network, x, y = problem()
    network.train()
    OBJECTIVES[objective].loss(network, x, y, SETTINGS[objective], step())
    assert network.training
    assert network[1].num_batches_tracked == passes


def test_crown_ibp_moves_from_crown_ibp_bounds_to_interval_bounds():
    network, x, y = problem("cifar_model")
    for ramp, beta in [(0.25, 0.75), (1.0, 0.0)]:
        expected = functional.cross_entropy(-class_margins(network, x, y, 0.02, beta=beta), y)
        found = OBJECTIVES["crown-ibp"].loss(network, x, y, SETTINGS["crown-ibp"], step(0.02, ramp))
        assert found.total.item() == pytest.approx(expected.item(), rel=1e-6)
    keeps = CrownIbpObjective(name="crown-ibp", epsilon="8/255", beta_end=1.0)
    expected = functional.cross_entropy(-class_margins(network, x, y, 0.02, beta=1.0), y)
    assert OBJECTIVES["crown-ibp"].loss(network, x, y, keeps, step(0.02, 1.0)).total.item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_crown_ibp_at_radius_zero_is_the_natural_loss():
    network, x, y = problem("cifar_model")
    natural = functional.cross_entropy(network(x), y)
    found = OBJECTIVES["crown-ibp"].loss(network, x, y, SETTINGS["crown-ibp"], step(0.0, 0.0))
    assert found.total.item() == pytest.approx(natural.item(), rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_the_weights_of_a_dense_network(objective):
    network, x, y = problem()
    network.train()
    OBJECTIVES[objective].loss(network, x, y, SETTINGS[objective], step()).total.backward()
    for name, parameter in network.named_parameters():
        if not name.endswith("7.bias"):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_the_scores_and_only_them_while_pruning(objective):
    network, x, y = problem("cifar_model")
    attach_masks(network, 0.3)
    set_phase(network, "prune")
    network.train()
    with shared_masks(network):
        OBJECTIVES[objective].loss(network, x, y, SETTINGS[objective], step()).total.backward()
    assert all(found.scores.grad.any() for found in score_masks(network).values())
    assert all(layer.parametrizations.weight.original.grad is None for layer in prunable_layers(network).values())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_verdicts_at_radius_zero_are_clean_correctness(objective):
    network, x, y = problem()
    network.eval()
    y = network(x).argmax(1)
    y[:3] = (y[:3] + 1) % 10
    verdicts = OBJECTIVES[objective].verdicts(network, x, y, SETTINGS[objective], step(0.0))
    assert verdicts.tolist() == [False] * 3 + [True] * 3


def test_a_verdict_at_the_full_radius_is_stricter_than_a_clean_one():
    """Logits ±(20 · first pixel - 10): right at 0.52 when clean, wrong after any step down of 0.02."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[20.0], [-20.0]]))
        network[1].bias.copy_(torch.tensor([-10.0, 10.0]))
    x, y = torch.tensor([0.52, 0.6]).view(2, 1, 1, 1), torch.tensor([0, 0])
    for objective in ("trades", "crown-ibp"):
        verdicts = OBJECTIVES[objective].verdicts(network, x, y, SETTINGS[objective], step(8 / 255))
        assert verdicts.tolist() == [False, True], objective
    assert OBJECTIVES["natural"].verdicts(network, x, y, SETTINGS["natural"], step()).tolist() == [True, True]
