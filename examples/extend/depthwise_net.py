"""A small network of depthwise-separable convolutions as an architecture; `model: {arch: depthwise_net}`.

Each block mixes pixels within a channel (3x3, one filter a channel), then channels within a pixel (1x1).
Source: Howard et al., MobileNets, arXiv:1704.04861, section 3.1.
"""

from __future__ import annotations

from torch import nn

from hydrabench.models import MODELS, Architecture

WIDTHS = (16, 32, 64)


def separable(channels: int, out: int, stride: int) -> list[nn.Module]:
    """One block: depthwise and pointwise convolution, each followed by batch norm and ReLU."""
    return [
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    ]


def depthwise_net(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build the network for images of `shape`, (channels, height, width)."""
    if min(shape[1:]) < 4:
        raise ValueError(f"images of {shape[1]}x{shape[2]} pixels are too small for two strides")
    stem = [nn.Conv2d(shape[0], WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()]
    blocks = [*separable(WIDTHS[0], WIDTHS[1], 2), *separable(WIDTHS[1], WIDTHS[2], 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[2], num_classes))


MODELS["depthwise_net"] = Architecture(depthwise_net)
