"""AutoAttack on linear networks, whose robust images are known; too few classes or pixels are refused."""

from __future__ import annotations

import pytest
import torch

from hydrabench.errors import ConfigError, HydrabenchError
from hydrabench.evaluators import AutoAttackSettings
from hydrabench.evaluators.autoattack import evaluate_autoattack
from hydrabench.evaluators.autoattack_settings import fitted_to_classes
from tests.helpers.autoattack_problems import (
    Shortened,
    as_block,
    linear_network,
    rng,
)


def test_a_linear_network_is_judged_by_the_closed_form():
    """Robust iff (w_y - w_j)·x > eps * ‖w_y - w_j‖_1 for every other j; no pixel comes near 0 or 1."""
    weight = torch.randn(4, 36, generator=rng(5), dtype=torch.float64)
    network = linear_network(weight)
    images = torch.rand(12, 1, 6, 6, generator=rng(6)).double() * 0.4 + 0.3
    labels = network(images).argmax(1)
    gaps = (weight[labels][:, None] - weight[None]).abs().sum(2).clamp_min(1e-12)
    scores = network(images).detach()
    reach = ((scores.gather(1, labels[:, None]) - scores) / gaps).scatter(1, labels[:, None], torch.inf).amin(1)
    epsilon = reach.sort().values[5:7].mean().item()
    assert (reach / epsilon - 1).abs().min() > 0.002
    records = evaluate_autoattack(network, as_block(images, labels), AutoAttackSettings(epsilon=str(round(epsilon, 9))))
    assert [record.robust for record in records] == (reach > epsilon).tolist()


@pytest.mark.parametrize("name", ["apgd-t", "fab-t"])
def test_a_linear_network_is_judged_by_the_closed_form_in_l1(name):
    """Robust iff (w_y - w_j)·x > eps * max|w_y - w_j| for every other j: one pixel moves, and its room exceeds eps.

    FAB finds that pixel. APGD-T moves several, and needs a tenth more.
    """
    weight = torch.randn(6, 36, generator=rng(5), dtype=torch.float64)
    weight -= weight.mean(1, keepdim=True)  # grey has the same logits everywhere, so that margins are small
    network = linear_network(weight)
    images = torch.rand(8, 1, 6, 6, generator=rng(6)).double() * 0.04 + 0.48
    labels = network(images).argmax(1)
    largest = (weight[labels][:, None] - weight[None]).abs().amax(2).clamp_min(1e-12)
    scores = network(images).detach()
    reach = ((scores.gather(1, labels[:, None]) - scores) / largest).scatter(1, labels[:, None], torch.inf).amin(1)
    epsilon = reach.sort().values[3:5].mean().item()
    assert epsilon < 0.48
    settings = AutoAttackSettings(norm="l1", epsilon=str(round(epsilon, 9)), attacks=(name,))
    records = evaluate_autoattack(network, as_block(images, labels), settings)
    found = torch.tensor([record.robust for record in records])
    assert found[reach > epsilon].all()
    assert not found[reach < epsilon * (1 if name == "fab-t" else 0.9)].any()
    assert 2 <= (reach < 0.9 * epsilon).sum() <= 4


def refusal(network, images, norm="linf"):
    block = as_block(images, torch.zeros(len(images), dtype=torch.int64))
    with pytest.raises(HydrabenchError) as caught:
        evaluate_autoattack(network, block, AutoAttackSettings(norm=norm, epsilon="0.1"))
    return str(caught.value)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("ensemble", ["standard", "plus"])
def test_networks_of_few_classes_are_judged(monkeypatch, classes, ensemble):
    """A linear network is robust if its margin is above epsilon times the L1 norm of the weights' difference."""
    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)
    weight = torch.randn(classes, 36, generator=rng(5))
    network = linear_network(weight)
    images = torch.rand(8, 1, 6, 6, generator=rng(6)) * 0.4 + 0.3
    labels = network(images).argmax(1)
    gaps = (weight[labels][:, None] - weight[None]).abs().sum(2).clamp_min(1e-12)
    scores = network(images).detach()
    reach = ((scores.gather(1, labels[:, None]) - scores) / gaps).scatter(1, labels[:, None], torch.inf).amin(1)
    epsilon = reach.sort().values[3:5].mean().item()
    settings = fitted_to_classes(AutoAttackSettings(epsilon=str(round(epsilon, 9)), ensemble=ensemble), classes)
    records = evaluate_autoattack(network, as_block(images, labels), settings)
    assert [record.robust for record in records] == (reach > epsilon).tolist()


def test_attacks_that_need_more_classes_are_refused():
    message = refusal(linear_network(torch.randn(3, 36)), torch.rand(2, 1, 6, 6))
    assert "at least 4 classes" in message
    assert "got 3; name the attacks that are defined with --attacks apgd-ce,fab-t,square" in message
    asked = AutoAttackSettings(epsilon="0.1", attacks=("square", "apgd-dlr"))
    with pytest.raises(
        ConfigError, match=r"apgd-dlr compares 3 logits, the network has 2; leave it out of the attacks"
    ):
        fitted_to_classes(asked, 2)


def test_images_too_small_for_square_under_l2_are_refused():
    assert "at least 5 x 5 pixels, got (4, 6); name the other attacks with --attacks apgd-ce,apgd-t,fab-t" in refusal(
        linear_network(torch.randn(4, 24)), torch.rand(2, 1, 4, 6), norm="l2"
    )
