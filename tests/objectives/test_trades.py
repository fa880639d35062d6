"""TRADES: its divergence, its attack in both norms, and what the attack does not compute."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import nn
from torch.nn import functional

from hydrabench.masking import attach_masks, prunable_layers, score_masks, set_phase, shared_masks
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.objectives.trades import TradesSettings, divergence
from hydrabench.runtime import stream

LOSS = OBJECTIVES["trades"].loss
SETTINGS = TradesSettings(name="trades", epsilon="8/255", steps=3)


def problem():
    network = build_model("cifar_model", (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    return network, torch.rand(6, 1, 8, 8, generator=generator), torch.randint(0, 10, (6,), generator=generator)


def test_the_divergence_of_two_coins_worked_by_hand():
    """KL((1/2, 1/2) ‖ (1/4, 3/4)) = 1/2 log 2 + 1/2 log(2/3)."""
    clean = torch.tensor([[0.0, 0.0]])
    other = torch.tensor([[0.0, log(3.0)]])
    assert divergence(clean, other).item() == pytest.approx(0.5 * log(2) + 0.5 * log(2 / 3), rel=1e-6)
    assert divergence(other, other).item() == pytest.approx(0, abs=1e-7)


def test_trades_penalises_what_the_attack_finds():
    network, x, y = problem()
    natural = functional.cross_entropy(network(x), y)
    trades = LOSS(network, x, y, SETTINGS, TrainingStep(8 / 255, 1.0, stream("test")))
    random_start = network((x + 0.001 * torch.randn(x.shape, generator=stream("test"))).clamp(0, 1))
    weak = divergence(network(x), random_start).mean()
    assert trades.total > natural + 6 * weak * 10


def test_the_l2_attack_steps_by_two_radii_over_the_steps_and_stays_in_the_ball():
    """Logits ±(3 a + 4 b), radius 0.1, 4 steps of 0.05: along ±(0.6, 0.8), on the sphere from the second on.

    The start is a thousandth of a normal draw away, so the end is (0.06, 0.08) away up to that; the image
    at (1, 1) can only move inwards.
    """
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[3.0, 4.0], [-3.0, -4.0]]) / 4)
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().flatten(1)))
    x = torch.full((20, 1, 1, 2), 0.5)
    x[0] = 1.0
    settings = TradesSettings(name="trades", norm="l2", epsilon="0.1", steps=4)
    LOSS(network, x, torch.zeros(20, dtype=torch.int64), settings, TrainingStep(0.1, 1.0, stream("trades")))
    clean, points, end = seen[0], seen[1:5], seen[-1]
    noise = 0.001 * TrainingStep(0.1, 1.0, stream("trades")).normal(x).flatten(1)
    torch.testing.assert_close(points[0], (clean + noise).clamp(0, 1))
    moved = (points[1] - points[0])[1:]
    torch.testing.assert_close(moved.abs(), torch.tensor([[0.03, 0.04]]).expand(19, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close((end - clean)[1:].abs(), torch.tensor([[0.06, 0.08]]).expand(19, 2), rtol=0, atol=3e-3)
    lengths = torch.linalg.vector_norm(end - clean, dim=1)
    assert lengths.max() <= 0.1 + 1e-6
    assert lengths[1:].min() > 0.1 - 1e-4
    assert end.max() <= 1


def test_a_step_takes_one_clean_pass_for_the_attack_and_one_for_the_loss():
    """3 attack steps: one clean pass without gradients in eval mode, 3 of points, then clean and adversarial."""
    network, x, y = problem()
    passes = []
    network.register_forward_pre_hook(
        lambda module, inputs: passes.append((module.training, torch.is_grad_enabled(), torch.equal(inputs[0], x)))
    )
    LOSS(network, x, y, SETTINGS, TrainingStep(8 / 255, 1.0, stream("test")))
    attack = [(False, False, True)] + [(False, True, False)] * 3
    assert passes == [*attack, (True, True, True), (True, True, False)]


@pytest.mark.parametrize("phase", ["train", "prune", "finetune"])
def test_the_attack_differentiates_the_image_only_and_shares_the_masks(phase):
    """Hooks on parameters and on effective weights: no gradient of either is computed before the backward pass."""
    network, x, y = problem()
    attach_masks(network, 0.3)
    set_phase(network, phase)
    computed, selected = [], []
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: computed.append("parameter"))
    for mask in score_masks(network).values():
        mask.register_forward_hook(lambda *_: selected.append("mask"))
    with shared_masks(network):
        for layer in prunable_layers(network).values():
            layer.weight.register_hook(lambda gradient: computed.append("weight"))
        losses = LOSS(network, x, y, SETTINGS, TrainingStep(8 / 255, 1.0, stream("test")))
        assert not computed
        assert len(selected) == len(score_masks(network))
        losses.total.backward()
    assert {"parameter", "weight"} == set(computed)
