"""Adversarial training on networks of one and two pixels, where the worst image is known."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import nn

from hydrabench.attacks import pgd
from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.objectives.pgd import PgdTrainingSettings, step_size
from hydrabench.objectives.trades import TradesSettings
from hydrabench.runtime import stream

LOSS = OBJECTIVES["pgd"].loss


def linear(weight, bias=0.0):
    """Logits ±(weight · pixels + bias)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(len(weight), 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([weight, weight]) * torch.tensor([[1.0], [-1.0]]))
        network[1].bias.copy_(torch.tensor([bias, -bias]))
    return network


def seen_by(network):
    """The images that the network is given, as a list that grows."""
    images = []
    network.register_forward_pre_hook(lambda module, inputs: images.append(inputs[0].detach().clone()))
    return images


def test_the_loss_is_that_of_the_worst_image_in_the_ball_worked_by_hand():
    """Logits ±(20 x - 10) at 0.5: the worst of class 0 is 0.4 with margin -4, at half the ramp 0.45 with -2."""
    network = linear([20.0], -10.0)
    x, y = torch.full((3, 1, 1, 1), 0.5), torch.zeros(3, dtype=torch.int64)
    settings = PgdTrainingSettings(name="pgd", epsilon="0.1", steps=8)
    for ramp, margin in [(1.0, 4), (0.5, 2)]:
        losses = LOSS(network, x, y, settings, TrainingStep(0.1 * ramp, ramp, stream("pgd")))
        assert losses.total.item() == pytest.approx(log(1 + exp(margin)), rel=1e-5)
        assert losses.logits[0].tolist() == pytest.approx([-margin / 2, margin / 2], rel=1e-5)


def test_the_start_is_uniform_in_the_ball_and_a_step_shrinks_with_the_ramp():
    network = linear([20.0], -10.0)
    x, y = torch.full((50, 1, 1, 1), 0.5), torch.zeros(50, dtype=torch.int64)
    images = seen_by(network)
    LOSS(network, x, y, PgdTrainingSettings(name="pgd", epsilon="0.1", steps=1), TrainingStep(0.08, 0.8, stream("pgd")))
    start = 0.5 + 0.08 * TrainingStep(0.08, 0.8, stream("pgd")).uniform(x)
    torch.testing.assert_close(images[0], start)
    torch.testing.assert_close(images[1], (start - 0.025 * 0.8).clamp(0.42, 0.58))
    assert len(images) == 2


def test_in_l2_the_worst_image_lies_in_the_direction_of_the_weights():
    """Logits ±(3 a + 4 b): class 0 is worst at (0.5, 0.5) - 0.1 · (0.6, 0.8), with margin 2 · (3.5 - 0.5)."""
    network = linear([3.0, 4.0])
    x, y = torch.full((3, 1, 1, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    images = seen_by(network)
    settings = PgdTrainingSettings(name="pgd", norm="l2", epsilon="0.1", steps=60, step_size="0.05")
    losses = LOSS(network, x, y, settings, TrainingStep(0.1, 1.0, stream("pgd")))
    start = 0.5 + 0.1 * TrainingStep(0.1, 1.0, stream("pgd")).uniform(x, norm="l2")
    torch.testing.assert_close(images[0], start)
    torch.testing.assert_close(images[-1].flatten(1), torch.tensor([[0.44, 0.42]] * 3), atol=1e-4, rtol=0)
    assert losses.total.item() == pytest.approx(log(1 + exp(-6)), rel=1e-3)


def test_an_image_that_is_wrong_does_not_survive_where_the_attack_happens_to_make_it_right():
    """Wrong only within 0.005 of 0.5: steps of 0.025 towards it mostly end beside it."""

    class WrongInAPoint(nn.Module):
        def forward(self, x):
            margin = 20 * (x.flatten(1) - 0.5).abs() - 0.1
            return torch.cat([margin, -margin], 1)

    x, y = torch.full((20, 1, 1, 1), 0.5), torch.zeros(20, dtype=torch.int64)
    settings = PgdTrainingSettings(name="pgd", epsilon="0.1")
    attacked = pgd(WrongInAPoint(), x, y, 0.1, generator=stream("pgd"), steps=10, step_size=0.025)
    assert (WrongInAPoint()(attacked).argmax(1) == y).sum() > 10
    assert not OBJECTIVES["pgd"].verdicts(WrongInAPoint(), x, y, settings, TrainingStep(0.1, 1.0, stream("pgd"))).any()


def test_the_attack_sees_the_running_statistics_and_the_loss_those_of_the_batch():
    modes = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    network.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    x, y = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    LOSS(network, x, y, PgdTrainingSettings(name="pgd", epsilon="0.1", steps=3), TrainingStep(0.1, 1.0, stream("pgd")))
    assert modes == [False, False, False, True]


@pytest.mark.parametrize(
    ("keys", "steps", "expected"),
    [
        ({"epsilon": "8/255"}, 10, 2 / 255),
        ({"epsilon": "8/255"}, 3, 2 / 255),
        ({"epsilon": "0.5", "norm": "l2"}, 10, 0.1),
        ({"epsilon": "0.5", "norm": "l2", "step_size": "0.3"}, 10, 0.3),
    ],
)
def test_the_step_size_unless_given_is_a_quarter_of_the_radius_or_in_l2_a_share_of_two(keys, steps, expected):
    for settings in (PgdTrainingSettings(name="pgd", **keys), TradesSettings(name="trades", **keys)):
        assert step_size(settings, steps) == pytest.approx(expected, rel=1e-12)
