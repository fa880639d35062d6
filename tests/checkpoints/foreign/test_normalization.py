"""Whether images tell that a network was trained on other, normalised ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.checkpoints import better_normalization
from hydrabench.models import normalized


def bright_or_dark() -> nn.Module:
    """Class 1 if the images that it gets are above 0 on average: those above 1/2, behind the normalisation `half`."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    network[1].weight.data = torch.stack([torch.zeros(48), torch.ones(48)])
    network[1].bias.data.zero_()
    return network.eval()


def images(count=200):
    y = torch.arange(count) % 2
    return (0.25 + 0.5 * y).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone(), y


def test_a_network_that_is_far_better_behind_a_normalisation_is_seen_with_both_accuracies():
    x, y = images()
    found = better_normalization(bright_or_dark(), x, y)
    assert found is not None
    assert found.accuracy == 1.0
    assert found.instead_of == 0.5  # without one, every image is above 0
    assert found.name in ("half", "cifar10", "cifar100", "imagenet")


@pytest.mark.parametrize("name", ["right", "too few images", "no better"])
def test_nothing_is_said_without_reason(name):
    x, y = images(4 if name == "too few images" else 200)
    network = bright_or_dark()
    if name == "right":
        network = normalized(network, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()
    if name == "no better":
        network[1].weight.data.zero_()
    assert better_normalization(network, x, y) is None


def test_a_normalisation_that_is_too_much_is_seen_too():
    x, y = images()
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    network[1].weight.data = torch.stack([torch.zeros(48), torch.ones(48)])
    network[1].bias.data = torch.tensor([0.0, -24.0])  # at 48 pixels of 1/2
    found = better_normalization(normalized(network, (0.0, 0.0, 0.0), (0.3, 0.3, 0.3)).eval(), x, y)
    assert found is not None
    assert (found.name, found.accuracy, found.instead_of) == ("none", 1.0, 0.5)
