"""VGG for small images, as HYDRA uses it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


POOL = "M"
LayerList = tuple[int | str, ...]
_VGG4: LayerList = (64, 64, POOL, 128, 128, POOL)
_VGG6: LayerList = (*_VGG4, 256, 256, POOL)
# depth in the name -> output channels of the convolutions, and "M" for a pooling layer
LAYOUTS: dict[int, LayerList] = {
    2: (64, POOL, 64, POOL),
    4: _VGG4,
    6: _VGG6,
    8: (*_VGG6, 512, 512, POOL),
    11: (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512),
    13: (*_VGG6, 512, 512, POOL, 512, 512),
    16: (*_VGG4, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512),
}
HIDDEN = 256


def vgg(
    layout: Sequence[int | str], shape: tuple[int, int, int], num_classes: int, *, batch_norm: bool = False
) -> nn.Sequential:
    """3x3 convolutions without bias, ReLU, 2x2 max pooling at "M"; average pooling to 2x2; three linear layers.

    Args:
        layout: a value of `LAYOUTS`.
        shape: (channels, height, width) of the images; each side must survive the poolings.
        num_classes: outputs of the last linear layer.
        batch_norm: put BatchNorm2d between each convolution and its ReLU.
    Returns: children `features`, `avgpool`, `flatten`, `classifier`; keys as in the original
        (`features.{i}.weight`, `classifier.{0,2,4}.weight`). Convolutions start Kaiming normal (fan-out),
        linear layers from N(0, 0.01) with zero bias.
    Raises: ValueError if the images are too small for the poolings.
    """
    from torch import nn

    if min(shape[1:]) >> layout.count(POOL) < 1:
        raise ValueError(f"images of {shape[1]}x{shape[2]} pixels are too small for {layout.count(POOL)} poolings")
    features, channels = _features(layout, shape[0], batch_norm=batch_norm)
    classifier = nn.Sequential(
        nn.Linear(4 * channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes)
    )
    network = nn.Sequential(
        OrderedDict(
            features=features,
            avgpool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            classifier=classifier,
        )
    )
    _initialize(network)
    return network


def _features(layout: Sequence[int | str], channels: int, *, batch_norm: bool) -> tuple[nn.Sequential, int]:
    """The convolutions and poolings over images of so many channels, and how many channels they return."""
    from torch import nn

    layers: list[nn.Module] = []
    for entry in layout:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, entry, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(entry)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
        channels = entry
    return nn.Sequential(*layers), channels


def _initialize(network: nn.Module) -> None:
    import torch
    from torch import nn

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.01)
                module.bias.zero_()
