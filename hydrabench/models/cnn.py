"""The small sequential networks of verified training, for any image size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


# A convolution is (channels, kernel, stride, padding); an integer is a hidden linear layer.
Layer = tuple[int, int, int, int] | int
SMALL: tuple[Layer, ...] = ((16, 4, 2, 1), (32, 4, 2, 1), 100)
LARGE: tuple[Layer, ...] = ((32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 4, 2, 1), 512, 512)
CNN7: tuple[Layer, ...] = ((64, 3, 1, 1), (64, 3, 1, 1), (128, 3, 2, 1), (128, 3, 1, 1), (128, 3, 1, 1), 512)
VGG4: tuple[Layer, ...] = ((64, 3, 1, 1), (64, 3, 2, 1), (128, 3, 1, 1), (128, 3, 2, 1), 256, 256)


def sequential_cnn(
    layers: Sequence[Layer],
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    batch_norm: bool = False,
    linear_batch_norm: bool = False,
) -> nn.Sequential:
    """Convolutions, flatten, linear layers, each but the last followed by ReLU; every one has a bias.

    Args:
        layers: the convolutions, then the hidden linear layers.
        shape: (channels, height, width) of the images.
        num_classes: outputs of the last linear layer.
        batch_norm: put BatchNorm2d between each convolution and its ReLU.
        linear_batch_norm: put BatchNorm1d between each hidden linear layer and its ReLU.
    Returns: a plain sequential whose keys are bare indices. Convolutions start from
        N(0, sqrt(2 / (kernel area · out channels))) with zero bias, linear layers from torch's default.
    Raises: ValueError if the images are too small for the strides.
    """
    from torch import nn

    modules, features = _convolutions(layers, shape, batch_norm=batch_norm)
    modules.append(nn.Flatten())
    for hidden in (spec for spec in layers if isinstance(spec, int)):
        norm = [nn.BatchNorm1d(hidden)] if linear_batch_norm else []
        modules += [nn.Linear(features, hidden), *norm, nn.ReLU()]
        features = hidden
    modules.append(nn.Linear(features, num_classes))
    return nn.Sequential(*modules)


def _convolutions(
    layers: Sequence[Layer], shape: tuple[int, int, int], *, batch_norm: bool
) -> tuple[list[nn.Module], int]:
    """Return the layers before the flatten, and how many numbers of an image (channels, height, width) they leave."""
    from torch import nn

    channels, height, width = shape
    modules: list[nn.Module] = []
    for spec in (spec for spec in layers if isinstance(spec, tuple)):
        out, kernel, stride, padding = spec
        modules.append(_convolution(channels, spec))
        modules += [nn.BatchNorm2d(out)] if batch_norm else []
        modules.append(nn.ReLU())
        channels = out
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
        if height < 1 or width < 1:
            raise ValueError(f"images of {shape[1]}x{shape[2]} pixels are too small for this network")
    return modules, channels * height * width


def _convolution(in_channels: int, spec: tuple[int, int, int, int]) -> nn.Conv2d:
    import torch
    from torch import nn

    out, kernel, stride, padding = spec
    layer = nn.Conv2d(in_channels, out, kernel, stride, padding)
    with torch.no_grad():
        layer.weight.normal_(0, (2 / (kernel * kernel * out)) ** 0.5)
        layer.bias.zero_()  # type: ignore[union-attr]
    return layer
