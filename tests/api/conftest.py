"""A network of the user's own, and images of its own, for every test of the functions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.data import load_images


class OwnNetwork(nn.Module):
    """As people write them: the normalisation inside, dropout, batch norm."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3]).view(1, 1, 1, 1))
        self.register_buffer("std", torch.tensor([0.25]).view(1, 1, 1, 1))
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        return self.head(self.features((x - self.mean) / self.std).flatten(1))


@pytest.fixture
def own_network():
    torch.manual_seed(0)
    return OwnNetwork()


@pytest.fixture(scope="session")
def few():
    """Images and labels, float32 in [0, 1] and int64, of which 24 are the first test images of the digits."""
    images = load_images("digits", "test")
    return images.images[:24] / 255, images.labels[:24]
