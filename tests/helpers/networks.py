"""Networks that several tests take: with batch norms that do something, with random weights, with large rounding."""

from __future__ import annotations

import torch
from torch import nn


def with_lively_batch_norm(network: nn.Module, seed: int) -> nn.Module:
    """Give batch norms statistics and parameters away from 0 and 1; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.2, generator=generator)
    return network.eval()


def randomise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights and statistics from normal laws, so that values keep their size from layer to layer."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)


def cancelling_network(large: float) -> nn.Module:
    """Logits ((large·p - p) - large·p + 1/2, 0) of a pixel p: its margin is 1/2 - p.

    If `large` is a power of 2 beyond the precision, large - 1 is rounded to large, forward and backward, and nothing is
    left of what was so large.
    """
    rows = [[[1.0], [1]], [[1, 0], [1, 0], [0, 1]], [[large, -1, 0], [0, 0, large]], [[1, -1]], [[1], [0]]]
    layers = [nn.Linear(len(weight[0]), len(weight), bias=False) for weight in rows]
    layers[-1] = nn.Linear(1, 2)
    for layer, weight in zip(layers, rows, strict=True):
        layer.weight.data = torch.tensor(weight, dtype=torch.float32)
    layers[-1].bias.data = torch.tensor([0.5, 0.0])
    return nn.Sequential(nn.Flatten(), *layers).eval().requires_grad_(False)


def two_logits_of_a_pixel() -> nn.Module:
    """Logits ±(20 x - 10) of one pixel x."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[20.0], [-20.0]]))
        network[1].bias.copy_(torch.tensor([-10.0, 10.0]))
    return network
