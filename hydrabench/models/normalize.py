"""Input normalisation as a layer, so that radii and boxes stay in pixel units."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std per channel; `mean` and `std` are constants, (1, C, 1, 1), outside the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images (B, C, H, W)."""
        return (x - self.mean) / self.std


def normalized(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    """Return `network` behind a `Normalize` layer; `inner_network` gives it back."""
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), network=network))


def inner_network(model: nn.Module) -> nn.Module:
    """The network without the normalisation in front of it; its state dict has the architecture's own keys."""
    if isinstance(model, nn.Sequential) and len(model) == 2 and isinstance(model[0], Normalize):
        return model[1]
    return model
