"""Residual networks: HYDRA's for CIFAR and torchvision's for ImageNet."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# depth -> residual blocks of the four stages (He et al., arXiv:1512.03385, table 1)
STAGES: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
WIDTHS = (64, 128, 256, 512)
THIN_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: out = ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x))."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, width, H / stride, W / stride), rounded up."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride) and 1x1 convolutions beside a shortcut; four times `width` comes out."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, 4 · width, H / stride, W / stride), rounded up."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = F.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return F.relu(residual + self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Identity where the shape stays; else a 1x1 convolution and batch norm, keys `0` and `1`."""
    if in_channels == out_channels and stride == 1:
        return nn.Sequential()
    projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels))


def cifar_resnet(depth: int, shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """The lower-case ResNets, for small images: a 3x3 convolution, four stages, average pooling, `linear`.

    Args:
        depth: a key of `STAGES`; 18 and 34 are built of basic blocks, the deeper ones of bottlenecks.
        shape: (channels, height, width) of the images.
        num_classes: outputs of the last layer.
    Returns: a network whose keys are the original's (`layer2.0.shortcut.0.weight`). The average is taken
        over whatever the stages leave, which is the original's 4x4 at 32x32 pixels. All weights start
        from torch's defaults: the reference records no initialisation of its own for these.
    Raises: ValueError if the images are too small for the strides.
    """
    require_pixels(shape, strides=3)
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock if depth < 50 else Bottleneck
    channels = WIDTHS[0]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(shape[0], channels, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(channels), relu=nn.ReLU()
    )
    for stage, (width, blocks) in enumerate(zip(WIDTHS, STAGES[depth], strict=True)):
        stack: list[nn.Module] = []
        for number in range(blocks):
            stack.append(block(channels, width, stride=2 if stage and number == 0 else 1))
            channels = block.expansion * width
        layers[f"layer{stage + 1}"] = nn.Sequential(*stack)
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(channels, num_classes))
    return nn.Sequential(layers)


def thin_resnet(depth: int, shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """The ResNets of He et al. for CIFAR-10, of which randomized smoothing uses depth 110.

    A 3x3 convolution, three stages of (depth - 2) / 6 basic blocks with 16, 32 and 64 channels, average pooling,
    `linear`; 1x1 convolutions where the shape changes.

    Args: depth: 6 n + 2. shape: (channels, height, width) of the images. num_classes: outputs of the last layer.
    Raises: ValueError if the images are too small for the strides.
    Source: He et al. (2015), arXiv:1512.03385, section 4.2; Cohen et al. (2019), arXiv:1902.02918, appendix.
    """
    require_pixels(shape, strides=2)
    channels = THIN_WIDTHS[0]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(shape[0], channels, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(channels), relu=nn.ReLU()
    )
    for stage, width in enumerate(THIN_WIDTHS):
        stack: list[nn.Module] = []
        for number in range((depth - 2) // 6):
            stack.append(BasicBlock(channels, width, stride=2 if stage and number == 0 else 1))
            channels = width
        layers[f"layer{stage + 1}"] = nn.Sequential(*stack)
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(channels, num_classes))
    return nn.Sequential(layers)


def imagenet_resnet(depth: int, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The capitalised ResNets: torchvision's (v1.5, stride in the 3x3 convolution), without weights.

    Args:
        depth: a key of `STAGES`.
        shape: (channels, height, width) of the images; with other than three channels, `conv1` is a new
            convolution with the same settings and initialisation.
        num_classes: outputs of `fc`.
    Returns: a network with torchvision's keys, so that a state dict of theirs loads into it. Convolutions
        start Kaiming normal (fan-out). Normalisation is not part of it, see `normalized`.
    Raises: ValueError if the images are too small for the strides.
    """
    from torchvision import models

    require_pixels(shape, strides=5)
    constructors = {
        18: models.resnet18,
        34: models.resnet34,
        50: models.resnet50,
        101: models.resnet101,
        152: models.resnet152,
    }
    network: nn.Module = constructors[depth](weights=None, num_classes=num_classes)
    if shape[0] != 3:
        network.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
        with torch.no_grad():
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


def require_pixels(shape: tuple[int, int, int], *, strides: int) -> None:
    """Refuse images of which a stride of 2 would find a single pixel left to halve.

    Args:
        shape: (channels, height, width) of the images.
        strides: how many strides of 2 the network has; each halves a side and rounds up.
    Raises: ValueError naming the smallest side, 2^(strides - 1) + 1: rounding up, strides - 1 halvings leave
        at least two pixels of it.
    """
    smallest = 2 ** (strides - 1) + 1
    if min(shape[1:]) < smallest:
        raise ValueError(
            f"images of {shape[1]}x{shape[2]} pixels are too small for {strides} strides of 2, "
            f"which need {smallest}x{smallest} or more"
        )
