"""SABR and the expressive losses: their formulas written out, their limits, the attack and the small box."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from hydrabench.bounds import class_margins, regularizer, training_bounds
from hydrabench.models import build_model
from hydrabench.objectives import OBJECTIVES, TrainingStep
from hydrabench.objectives.examples import small_centres, strongest_examples
from hydrabench.runtime import stream

EXPRESSIVE = ("mtl-ibp", "cc-ibp", "exp-ibp")


def problem(arch="cifar_model_bn"):
    network = build_model(arch, (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    return network, torch.rand(6, 1, 8, 8, generator=generator), torch.randint(0, 10, (6,), generator=generator)


def step(epsilon=0.03, ramp=1.0):
    return TrainingStep(epsilon, ramp, stream("test"))


def settings_of(name, **keys):
    return OBJECTIVES[name].settings.model_validate({"name": name, "epsilon": "8/255", "regularization": 0} | keys)


def loss(network, x, y, settings, given=None):
    return OBJECTIVES[settings.name].loss(network.train(), x, y, settings, given or step()).total


def examples(network, x, y, *, epsilon=0.03, **keys):
    """Return the examples of a step with the same random numbers, and the network in train mode."""
    return strongest_examples(network, x, y, step(), epsilon=epsilon, **{"steps": 8, "step_size": 0.0075} | keys)


@pytest.mark.parametrize("name", EXPRESSIVE)
def test_each_expressive_loss_is_its_formula(name):
    """Equations 7 to 9 of arXiv:2305.13991; batch norm takes the statistics of the adversarial examples."""
    network, x, y = problem()
    points = examples(network, x, y)
    adversarial = network(points)
    lower = training_bounds(network, x, y, 0.03, statistics=points).margins
    attacked = functional.cross_entropy(adversarial, y, reduction="none")
    boxes = functional.cross_entropy(-lower, y, reduction="none")
    mixed = 0.3 * lower + 0.7 * (adversarial.gather(1, y[:, None]) - adversarial)
    expected = {
        "mtl-ibp": 0.3 * boxes + 0.7 * attacked,
        "cc-ibp": functional.cross_entropy(-mixed, y, reduction="none"),
        "exp-ibp": boxes**0.3 * attacked**0.7,
    }[name].mean()
    found = loss(problem()[0], x, y, settings_of(name, ibp_weight=0.3))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", EXPRESSIVE)
def test_the_limits_are_adversarial_training_and_interval_bounds(name):
    network, x, y = problem("cifar_model")
    attacked = functional.cross_entropy(network(examples(network, x, y)), y)
    assert loss(network, x, y, settings_of(name, ibp_weight=0)).item() == pytest.approx(attacked.item(), rel=1e-5)
    boxes = functional.cross_entropy(-class_margins(network, x, y, 0.03, beta=0.0), y)
    assert loss(network, x, y, settings_of(name, ibp_weight=1)).item() == pytest.approx(boxes.item(), rel=1e-5)
    assert boxes > attacked


@pytest.mark.parametrize("name", EXPRESSIVE)
def test_the_radius_of_the_attack_may_exceed_that_of_the_boxes(name):
    network, x, y = problem("cifar_model")
    points = examples(network, x, y, epsilon=0.06, step_size=0.015)
    assert (points - x).abs().max() > 0.03
    found = loss(network, x, y, settings_of(name, ibp_weight=0, attack_factor=2))
    assert found.item() == pytest.approx(functional.cross_entropy(network(points), y).item(), rel=1e-5)


def test_sabr_bounds_the_small_box_with_the_statistics_of_the_clean_images():
    network, x, y = problem()
    points = examples(network, x, y, steps=8, step_size=0.015, decays=True)
    centres = small_centres(points, x, 0.03, 0.012)
    expected = functional.cross_entropy(-training_bounds(network, centres, y, 0.012, statistics=x).margins, y)
    found = loss(network, x, y, settings_of("sabr", box=0.4))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_sabr_with_the_whole_box_is_ibp():
    network, x, y = problem("cifar_model")
    boxes = functional.cross_entropy(-class_margins(network, x, y, 0.03, beta=0.0), y)
    assert loss(network, x, y, settings_of("sabr", box=1)).item() == pytest.approx(boxes.item(), rel=1e-4)


@pytest.mark.parametrize("half", [0.0, 0.01, 0.07, 0.1])
def test_the_small_box_lies_in_the_ball_and_near_the_example(half):
    x = torch.tensor([0.0, 0.02, 0.5, 0.99, 1.0]).view(5, 1, 1, 1)
    points = torch.tensor([0.1, 0.0, 0.58, 0.9, 0.93]).view(5, 1, 1, 1)
    centres = small_centres(points, x, 0.1, half)
    assert ((centres - half).clamp(0, 1) >= (x - 0.1).clamp(0, 1) - 1e-6).all()
    assert ((centres + half).clamp(0, 1) <= (x + 0.1).clamp(0, 1) + 1e-6).all()
    free = (points - half >= (x - 0.1).clamp(0, 1)) & (points + half <= (x + 0.1).clamp(0, 1))
    torch.testing.assert_close(centres[free], points[free])


def test_the_penalties_fall_with_the_radius_and_the_l1_norm_is_that_of_the_weights_in_use():
    network, x, y = problem("cifar_model")
    plain = loss(network, x, y, settings_of("mtl-ibp", ibp_weight=0.5), step(0.01, 0.25))
    penalty = 0.75 * 0.5 * regularizer(training_bounds(network, x, y, 0.01))
    found = loss(network, x, y, settings_of("mtl-ibp", ibp_weight=0.5, regularization=0.5), step(0.01, 0.25))
    assert (found - plain).item() == pytest.approx(penalty.item(), rel=1e-4)
    weights = sum(layer.weight.abs().sum().item() for layer in network if isinstance(layer, nn.Conv2d | nn.Linear))
    found = loss(network, x, y, settings_of("mtl-ibp", ibp_weight=0.5, l1=1e-3), step(0.01, 0.25))
    assert (found - plain).item() == pytest.approx(1e-3 * weights, rel=1e-3)


def test_the_strongest_example_is_never_weaker_than_the_last_point_and_lies_in_the_ball():
    network, x, y = problem("cifar_model")
    one = examples(network, x, y, steps=1, step_size=0.3)
    eight = examples(network, x, y)
    for points in (one, eight):
        assert ((points - x).abs() <= 0.03 + 1e-6).all()
        assert not points.requires_grad
    with torch.no_grad():
        clean, attacked = (functional.cross_entropy(network(points), y, reduction="none") for points in (x, eight))
    assert (attacked > clean).all()
    assert network.training


def test_a_misclassified_point_beats_a_larger_loss():
    """Three classes at a pixel: 0 until 0.55, then class 1; class 0's loss is largest where it still wins."""

    class Tent(nn.Module):
        def forward(self, x):
            z = x.flatten(1)
            wins = (z > 0.55).float()
            return torch.cat(
                [1 + 8 * (z - 0.5) - 9 * wins, 8 * wins - 8, 0.9 + 16 * (z - 0.5) * (1 - wins) - 20 * wins], 1
            )

    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    points = strongest_examples(Tent(), x, y, step(), epsilon=0.1, steps=6, step_size=0.04)
    assert Tent()(points).argmax(1).item() != 0
