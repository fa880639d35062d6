"""Costs of training and evaluation before they run, counted in forward passes of the network."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hydrabench.evaluators import Sizes
from hydrabench.masking import used_modules

MEASURED_SECONDS = 0.3


def sizes_of(network: nn.Module, shape: tuple[int, int, int], classes: int) -> Sizes:
    """Count the operations of one forward pass, without computing it.

    Args:
        network: in eval mode; left as it is. shape: (C, H, W) of its images.
    """
    outline = copy.deepcopy(network).to("meta")
    neurons: list[tuple[float, int]] = []  # operations up to a layer, and the neurons that it has
    counter = FlopCounterMode(display=False)

    def note(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        neurons.append((counter.get_total_flops(), output.numel()))

    layers = [layer for _, layer in used_modules(outline) if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with counter, torch.no_grad():
        outline(torch.zeros(1, *shape, device="meta"))
    for hook in hooks:
        hook.remove()
    total = float(counter.get_total_flops())
    return Sizes(total, sum(flops * count for flops, count in neurons) / total, classes)


def measured_rate(network: nn.Module, shape: tuple[int, int, int], sizes: Sizes, device: torch.device) -> float:
    """Floating-point operations per second of forward passes on `device`, from a third of a second of them.

    Args:
        network: in eval mode, on the CPU; left as it is.
    """
    network = copy.deepcopy(network).to(device)
    images, spent = 1, 0.0
    with torch.inference_mode():
        while True:
            batch = torch.zeros(images, *shape, device=device)
            started = time.perf_counter()
            network(batch).sum().item()  # a number that is here has been computed
            spent = time.perf_counter() - started
            if spent >= MEASURED_SECONDS or images >= 4096:
                return sizes.flops * images / spent
            images *= 2
