"""Wide residual networks for small images, as HYDRA and TRADES use them."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydrabench.models.resnet import require_pixels


class WideUnit(nn.Module):
    """Pre-activation unit: x + conv(ReLU(BN(conv(ReLU(BN(x)))))).

    Where the number of channels changes, the shortcut is a 1x1 convolution, and it too takes ReLU(BN(x)).
    """

    convShortcut: nn.Conv2d | None  # named as in the original's files

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = None
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride), rounded up."""
        active = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (x if self.convShortcut is None else self.convShortcut(active))


class Unused(nn.Module):
    """Tensors that checkpoint files carry and that no forward pass reads.

    The attribute `unused_in_forward` keeps its layers out of masks, phases and counts, see
    `masking.used_modules`; its parameters ask for no gradient.
    """

    unused_in_forward = True

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)


class WideResNet(nn.Module):
    """Three groups of units, 16·widen to 64·widen channels; see `wide_resnet`.

    `sub_block1` duplicates `block1` and is never used. It came into the original's networks from TRADES'
    and is in every file of theirs and of RobustBench's, read strictly, so it stays in the state dict (204
    tensors for wrn_28_10). It gets no mask and no gradient and is left out of every count and density:
    4.3% of the weights of wrn_28_10 would otherwise be "pruned" or "kept" without computing anything.
    """

    def __init__(self, depth: int, widen: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        units = (depth - 4) // 6
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.block1 = _group(units, widths[0], widths[1], stride=1)
        self.sub_block1 = Unused(_units(units, widths[0], widths[1], stride=1))
        self.block2 = _group(units, widths[1], widths[2], stride=2)
        self.block3 = _group(units, widths[2], widths[3], stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W) in [0, 1]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        features = self.pool(F.relu(self.bn1(x)))
        logits: Tensor = self.fc(torch.flatten(features, 1))
        return logits


def wide_resnet(depth: int, widen: int, shape: tuple[int, int, int], num_classes: int) -> WideResNet:
    """Wide ResNet `depth`-`widen` without dropout (Zagoruyko and Komodakis, arXiv:1605.07146).

    Args:
        depth: 6n + 4, for n units in each of three groups with strides 1, 2, 2.
        widen: factor on the 16, 32 and 64 channels of the groups.
        shape: (channels, height, width) of the images.
        num_classes: outputs of the last layer.
    Returns: a network whose keys, and their order, are the original's, `sub_block1` included (see
        `WideResNet`). The average is taken over whatever the groups leave, which is the original's 8x8 at
        32x32 pixels. Convolutions start from N(0, sqrt(2 / (kernel area · out channels))), the linear
        layer from torch's default with zero bias. The unused group starts at zero, where the original draws
        it like the others: no logit depends on it, and zeros take no room in a compact file.
    Raises: ValueError if the images are too small for the strides, or there is no such depth.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"a wide ResNet has depth 6n + 4, such as 28 or 34, not {depth}")
    require_pixels(shape, strides=2)
    network = WideResNet(depth, widen, shape[0], num_classes)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                area = module.kernel_size[0] * module.kernel_size[1]
                module.weight.normal_(0, (2 / (area * module.out_channels)) ** 0.5)
        for parameter in (network.fc.bias, *network.sub_block1.parameters()):
            parameter.zero_()
    return network


def _group(units: int, in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    """The units under the name `layer`, as the original's keys have it."""
    return nn.Sequential(OrderedDict(layer=_units(units, in_channels, out_channels, stride=stride)))


def _units(units: int, in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    first = WideUnit(in_channels, out_channels, stride)
    return nn.Sequential(first, *(WideUnit(out_channels, out_channels, 1) for _ in range(units - 1)))
