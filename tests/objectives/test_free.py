"""Free training: the perturbation that a backward pass moves, and that stays."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.objectives.free import FreeSettings
from hydrabench.runtime import stream
from tests.helpers.networks import two_logits_of_a_pixel

LOSS = OBJECTIVES["free"].loss
SETTINGS = FreeSettings(name="free", epsilon="0.1")


@pytest.fixture
def network():
    return two_logits_of_a_pixel()


def batch(*pixels):
    return torch.tensor(pixels).view(-1, 1, 1, 1)


def train_once(network, x, y, memory, *, epsilon=0.1, **keys):
    losses = LOSS(
        network, x, torch.tensor(y), SETTINGS, TrainingStep(epsilon, 1.0, stream("free"), memory=memory, **keys)
    )
    losses.total.backward()
    losses.after()
    return losses


def test_each_backward_pass_moves_the_perturbation_by_the_radius_worked_by_hand(network):
    """At 0.5 the loss of both classes is log 2; class 0 then moves to 0.4, class 1 to 0.6: log(1 + e^4).

    They stay there: another step of 0.1 in the same direction leaves the ball.
    """
    memory = {}
    x = batch(0.5, 0.5)
    assert train_once(network, x, [0, 1], memory).total.item() == pytest.approx(log(2))
    assert memory["perturbation"].flatten().tolist() == pytest.approx([-0.1, 0.1])
    for _ in range(2):
        assert train_once(network, x, [0, 1], memory).total.item() == pytest.approx(log(1 + exp(4)), rel=1e-5)
        assert memory["perturbation"].flatten().tolist() == pytest.approx([-0.1, 0.1])
    assert network[1].weight.grad.any()


def test_a_step_across_the_ball_ends_at_its_centre(network):
    """From -0.1 with a gradient of the other sign: -0.1 + 0.1 = 0."""
    memory = {"perturbation": torch.full((1, 1, 1, 1), -0.1)}
    train_once(network, batch(0.5), [1], memory)
    assert memory["perturbation"].item() == pytest.approx(0, abs=1e-7)


def test_the_perturbation_outlives_the_minibatch_and_a_smaller_one_uses_its_first_rows(network):
    memory = {}
    train_once(network, batch(0.5, 0.5, 0.5), [0, 1, 0], memory)
    losses = train_once(network, batch(0.7), [1], memory)
    assert losses.logits[0, 0].item() == pytest.approx(20 * 0.6 - 10, rel=1e-5)
    assert memory["perturbation"].flatten().tolist() == pytest.approx([0.0, 0.1, -0.1], abs=1e-7)


def test_parts_of_a_batch_move_their_own_rows_only(network):
    memory = {}
    train_once(network, batch(0.5, 0.5), [1, 1], memory, rows=slice(1, 3), whole=4)
    assert memory["perturbation"].flatten().tolist() == pytest.approx([0, 0.1, 0.1, 0])


def test_the_perturbed_image_stays_in_the_pixel_range(network):
    """At 0.05, -0.1 leads to 0 and not to -0.05; clamping hides the pixel from the gradient, so it stays."""
    memory = {"perturbation": torch.full((1, 1, 1, 1), -0.1)}
    losses = train_once(network, batch(0.05), [0], memory)
    assert losses.logits[0, 0].item() == pytest.approx(-10)
    assert memory["perturbation"].item() == pytest.approx(-0.1)


def test_the_perturbation_is_not_moved_before_the_backward_pass(network):
    memory = {}
    losses = LOSS(
        network, batch(0.5), torch.tensor([0]), SETTINGS, TrainingStep(0.1, 1.0, stream("free"), memory=memory)
    )
    assert not memory["perturbation"].any()
    with pytest.raises(AssertionError, match="after backward"):
        losses.after()
