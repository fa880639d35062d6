"""Certify a network after every epoch of a training loop of your own.

    python examples/training_loop.py [EPOCHS]      # default 5

The loop trains on the interval bounds of hydrabench. `hb.certify` judges a copy: the network stays in training mode, on
its device, with its gradients.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import hydrabench as hb
from hydrabench.data import load_images, pixels

EPSILON = 4 / 255
HELD_OUT = 200  # of the training images; test images choose nothing


def main(epochs: int) -> None:
    """Train on the digits, certify held-out images after every epoch, and keep the best weights."""
    images = load_images("digits", "train")
    x, y = pixels(images.images), images.labels
    held_out, x, y = (x[:HELD_OUT], y[:HELD_OUT]), x[HELD_OUT:], y[HELD_OUT:]
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    best, kept = -1.0, network.state_dict()
    for epoch in range(epochs):
        epsilon = EPSILON * min(1.0, (epoch + 1) / max(1, epochs - 1))
        for part in torch.randperm(len(y)).split(64):
            margin = hb.bounds.interval_margins(network, x[part], y[part], epsilon)  # has gradients
            loss = nn.functional.cross_entropy(network(x[part]), y[part]) + nn.functional.softplus(-margin).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        run = hb.certify(network, held_out, method="crown-ibp", epsilon=EPSILON)
        verified = run["verified_accuracy"]
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, clean {run['clean_accuracy']:.1%}, verified {verified:.1%}")
        if verified > best:
            best, kept = verified, {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(kept)
    print(hb.certify(network, "digits", method="cascade", epsilon=EPSILON, name="best epoch"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
