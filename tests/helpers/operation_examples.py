"""An example of every class of operations: what stands between a convolution of the image and a small classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from activation_examples import ACTIVATIONS
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from hydrabench.bounds.program.arithmetic import Factor, Product, Shift, Subtract, Sum
from hydrabench.bounds.program.convolutions import Convolution, OtherConvolution
from hydrabench.bounds.program.linear import Add, Dense, Scale
from hydrabench.bounds.program.operations import Operation
from hydrabench.bounds.program.pooling import AdaptiveAveragePool, AveragePool, MaxPool
from hydrabench.bounds.program.relu import Relu
from hydrabench.bounds.program.structure import (
    Flatten,
    Identity,
    Join,
    Pad,
    Part,
    Permute,
    Repeat,
    Reshape,
)
from hydrabench.models.normalize import Normalize

SHAPE = (2, 4, 3)


class Call(nn.Module):
    """A function of a value, and of layers and buffers of its own."""

    def __init__(self, function, **own):
        super().__init__()
        self.function = function
        for name, value in own.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)


def per_channel(*numbers):
    return torch.tensor(numbers).view(1, -1, 1, 1)


def shuffled(_, x):
    """ShuffleNet's shuffle of channels."""
    batch, channels, height, width = x.size()
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


def swapped(_, x):
    first, second = x.chunk(2, dim=1)
    return torch.cat([torch.relu(second), first], 1)


def excited(self, x):
    """A squeeze and an excitation by a rectifier."""
    return torch.relu(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1))))) * x


# What stands between a convolution of the image and a small classifier; 4 channels of 4 x 3 entries.
Middle = Callable[[], nn.Module]
EXAMPLES: dict[type[Operation], list[Middle]] = {
    Convolution: [
        lambda: nn.Conv2d(4, 4, (3, 2), (2, 1), (1, 1), (1, 2), groups=2),
        lambda: nn.Conv2d(4, 8, 3, padding="same", groups=4),
    ],
    OtherConvolution: [
        lambda: nn.ConvTranspose2d(4, 2, 3, 2, 1, 1, groups=2),
        lambda: nn.Sequential(
            nn.Flatten(2), nn.Conv1d(4, 3, 4, 2, 1, groups=1), nn.ConvTranspose1d(3, 2, 3, dilation=2)
        ),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 2, 2, padding=1)),
    ],
    Dense: [lambda: nn.Linear(3, 5), lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 6))],
    Scale: [
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4)),
        lambda: Normalize([0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 0.7]),
    ],
    Relu: [
        nn.ReLU,
        lambda: nn.ReLU(inplace=True),
        lambda: Call(lambda self, x: F.relu(torch.relu(x).relu() - 0.1)),
        lambda: Call(lambda self, x: (torch.relu_(self.conv(x)) - 0.1).relu_(), conv=nn.Conv2d(4, 4, 1)),
    ],
    MaxPool: [
        lambda: nn.MaxPool2d(2, 1),
        lambda: nn.MaxPool2d((3, 2), 2, 1, ceil_mode=True),
        lambda: Call(lambda self, x: F.max_pool2d(torch.max_pool2d(x, 2, 1), 2, 1, dilation=(2, 1))),
    ],
    AveragePool: [
        lambda: nn.AvgPool2d(2, 2, 1, ceil_mode=True),
        lambda: Call(lambda self, x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False)),
    ],
    AdaptiveAveragePool: [
        lambda: nn.AdaptiveAvgPool2d((2, 2)),
        lambda: Call(lambda self, x: x.mean((2, 3))),
        lambda: Call(lambda self, x: F.adaptive_avg_pool2d(x, (3, 2))),
    ],
    Add: [
        lambda: Call(lambda self, x: x + torch.relu(x)),
        lambda: Call(lambda self, x: torch.add(x, x).add(self.conv(x)), conv=nn.Conv2d(4, 4, 1)),
        lambda: Call(in_place_sums, conv=nn.Conv2d(4, 4, 1), other=nn.Conv2d(4, 4, 1)),
    ],
    Subtract: [
        lambda: Call(lambda self, x: torch.relu(x) - x),
        lambda: Call(lambda self, x: torch.sub(self.conv(x), x).sub(x), conv=nn.Conv2d(4, 4, 3, padding=1)),
    ],
    Shift: [
        lambda: Call(
            lambda self, x: (x - self.mean) / self.std,
            mean=per_channel(0.1, -0.3, 0.5, 0.0),
            std=per_channel(0.5, 1, 2, 3),
        ),
        lambda: Call(lambda self, x: 1 - (x + 0.25), other=None),
        lambda: Call(
            lambda self, x: torch.add(x, 0.5) - self.c.view(4, 1, 1)[:, :, :1], c=torch.tensor([0.1, 0.2, 0.3, 0.4])
        ),
    ],
    Factor: [
        lambda: Call(in_place_scaling, conv=nn.Conv2d(4, 4, 1)),
        lambda: Call(lambda self, x: -x * 0.5),
        lambda: Call(
            lambda self, x: torch.div(torch.mul(torch.neg(x), self.c), 3).mul(2).div(self.c),
            c=torch.tensor([-1.5, 2.0, 0.5]),
        ),
        lambda: Call(
            lambda self, x: x.neg() * self.weight[None, :, None, None] / 2, weight=torch.tensor([-1.0, 0.0, 2.0, 3.0])
        ),
    ],
    Product: [
        lambda: Call(excited, down=nn.Conv2d(4, 2, 1), up=nn.Conv2d(2, 4, 1)),
        lambda: Call(lambda self, x: x * torch.relu(x)),
        lambda: Call(lambda self, x: torch.mul(self.conv(x), x), conv=nn.Conv2d(4, 4, 1)),
    ],
    Sum: [
        lambda: Call(lambda self, x: x.sum(1)),
        lambda: Call(lambda self, x: torch.mean(x, (-1, 1), keepdim=True)),
        lambda: Call(lambda self, x: torch.sum(x, dim=(2, 3)) - x.mean(-1).sum(2)),
    ],
    Flatten: [
        nn.Flatten,
        lambda: Call(lambda self, x: torch.flatten(x, 1)),
        lambda: Call(lambda self, x: x.view(x.size(0), -1)),
    ],
    Identity: [
        lambda: nn.Sequential(nn.Identity(), nn.Dropout(), nn.Dropout2d()),
        lambda: Call(lambda self, x: torch.relu(F.dropout(x, training=False).contiguous())),
        lambda: Call(lambda self, x: self.drop(x), drop=StochasticDepth(0.5, "row")),
    ],
    Reshape: [
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(2, 3), nn.ReLU()),
        lambda: Call(shuffled),
        lambda: Call(lambda self, x: torch.reshape(x, (-1, 3, 16)).unsqueeze(2).squeeze(2).squeeze(1)),
        lambda: Call(lambda self, x: torch.squeeze(torch.unsqueeze(x.unflatten(-1, (1, 3)), 1), 1)),
        lambda: Call(lambda self, x: torch.unflatten(x.flatten(1), 1, (6, 8)).reshape(x.shape[0], x.shape[1] * 2, -1)),
    ],
    Permute: [
        lambda: Call(lambda self, x: self.conv(x.permute(0, 3, 1, 2)), conv=nn.Conv2d(3, 2, 2)),
        lambda: Call(lambda self, x: torch.permute(torch.transpose(x, 1, -1), (0, 2, 3, 1)).transpose(-2, -1)),
    ],
    Part: [
        lambda: Call(lambda self, x: torch.relu(x[:, 1:3, ::2]) + x[:, 2:, ::2]),
        lambda: Call(lambda self, x: x[..., 1]),
        lambda: Call(swapped),
        lambda: Call(lambda self, x: torch.chunk(x, 3, 2)[0] + torch.split(x, [2, 2], 2)[1]),
        lambda: Call(lambda self, x: x.split(3, 1)[0]),
        lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
        lambda: Call(lambda self, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2)),
    ],
    Join: [
        lambda: Call(
            lambda self, x: torch.cat([x, torch.relu(x), self.conv(x)], 1), conv=nn.Conv2d(4, 2, 3, padding=1)
        ),
        lambda: Call(lambda self, x: torch.concat((x, torch.relu(x)), dim=-1)),
    ],
    Pad: [
        lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(4, 2, 3)),
        lambda: nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 2, 3), nn.ReLU()),
        lambda: Call(lambda self, x: F.pad(x, (1, -1, 0, 1, 1, 0), value=-0.5)),
    ],
    Repeat: [
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3), nn.ReLU()),
        lambda: Call(lambda self, x: F.interpolate(x, size=(5, 7), mode="nearest-exact")),
    ],
    **ACTIVATIONS,
}


def in_place_sums(self, x):
    found = self.conv(x)
    found += x
    return found.add_(self.other(x))


def in_place_scaling(self, x):
    found = self.conv(x)
    found -= 0.5
    found *= 1.5
    found /= 2.0
    return found.sub_(0.25).mul_(0.5).div_(0.75)
