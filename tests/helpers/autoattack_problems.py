"""Small networks and images for AutoAttack, and its ensemble cut short."""

from __future__ import annotations

from functools import cache

import torch
from pyautoattack import AutoAttack
from torch import nn

from hydrabench.data.images import Block
from hydrabench.evaluators.autoattack_settings import ATTACKS

ENSEMBLE = ATTACKS["standard"]
EPSILON = {"linf": "0.08", "l2": "0.3", "l1": "0.7"}
NAMES = {"linf": "Linf", "l2": "L2"}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def as_block(images, labels, number=3, first=300):
    indices = tuple(range(first, first + len(labels)))
    return Block(number, indices, images, labels, tuple(f"sha{index}" for index in indices))


@cache
def problem(classes=10):
    """A small network trained for a moment on noisy copies of random pictures, and ten fresh copies."""
    generator = rng(1)
    prototypes = torch.rand(classes, 1, 6, 6, generator=generator) * 0.6 + 0.2

    def sample(count):
        labels = torch.randint(classes, (count,), generator=generator)
        return (prototypes[labels] + 0.1 * torch.randn(count, 1, 6, 6, generator=generator)).clamp(0, 1), labels

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(54, classes)
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        images, labels = sample(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network.zero_grad(set_to_none=True)
    images, labels = sample(10)
    labels[0] = (labels[0] + 1) % classes
    return network.eval(), as_block(images, labels)


def linear_network(weight):
    network = nn.Sequential(nn.Flatten(), nn.Linear(*reversed(weight.shape))).eval().to(weight.dtype)
    with torch.no_grad():
        network[1].weight.copy_(weight)
        network[1].bias.zero_()
    return network


class Shortened(AutoAttack):
    """The standard ensemble with FAB cut to 20 of 100 iterations and Square to 100 of 5000 queries, to save time.

    In L1 APGD, which starts more often, is cut to 20 iterations.
    """

    def __init__(self, *arguments, **names):
        super().__init__(*arguments, **names)
        self.fab.n_iter, self.square.n_queries = 20, 100
        if self.norm == "L1":
            self.apgd.n_iter_orig = self.apgd_targeted.n_iter_orig = 20
