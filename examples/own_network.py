"""Judge a network that hydrabench knows nothing about: train it, attack it, certify it, put it into a table.

    python examples/own_network.py [IMAGES]      # of the test images, default 200

Takes the digits that come with scikit-learn, or CIFAR-10 if HYDRABENCH_DATA says where data sets lie.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor, nn

import hydrabench as hb
from hydrabench.data import load_images, pixels

DATASET = "cifar10" if os.environ.get("HYDRABENCH_DATA") else "digits"
EPSILON = "2/255" if DATASET == "cifar10" else "8/255"
EPOCHS, BATCH = 3, 128


class Network(nn.Module):
    """A small convolutional network that normalises its own inputs, so that radii stay in pixel units."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.4))
        self.register_buffer("std", torch.full((1, channels, 1, 1), 0.3))
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 4, stride=2, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(16 * (side // 2) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, 10)."""
        return self.head(self.features((x - self.mean) / self.std).flatten(1))


def train() -> Network:
    """A few epochs of cross entropy: nothing robust, which the table will show."""
    images = load_images(DATASET, "train")
    x, y = pixels(images.take(torch.arange(len(images)))), images.labels
    torch.manual_seed(0)
    network = Network(images.shape[0], images.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(y)).split(BATCH):
            loss = nn.functional.cross_entropy(network(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


def main(n: int) -> None:
    """Judge the network in four ways and print one table."""
    network = train()
    runs = [
        hb.attack(network, DATASET, attack="clean", n=n),
        hb.attack(network, DATASET, epsilon=EPSILON, steps=20, n=n),
        hb.certify(network, DATASET, method="crown", epsilon=EPSILON, n=n),
        hb.certify(network, DATASET, method="smoothing", sigma=0.12, samples=500, radii=[0.0, 0.1], n=n),
    ]
    for run in runs:
        print(run)
    attacked, certified = runs[1].records, runs[2].records
    assert not (certified["verified"] & ~attacked["robust"]).any()  # one row an image: joined by their index
    print(hb.report(runs).table.T.to_string())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
