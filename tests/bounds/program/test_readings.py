"""Calls in the forms that people write: each is read as exactly what torch computes, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydrabench.bounds import interval_bounds, program_of, read
from hydrabench.errors import UnsupportedLayerError

SHAPE = (4, 4, 6)


class Net(nn.Module):
    """A convolution, and any function of the module and its result."""

    def __init__(self, function):
        super().__init__()
        self.function, self.conv = function, nn.Conv2d(4, 4, 1)
        self.register_buffer("wide", torch.tensor([0.1, -0.2, 0.3, 0.4, 0.5, 0.7], dtype=torch.float64))
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.function(self, self.conv(x))


def changed(name):
    """What `a += 2` and its kin do to another name of the same value."""

    def function(_, x):
        space = {"a": x * 1}
        exec(f"b = a; a {name}= 2; found = a + b", space)
        return space["found"]

    return function


def halved(a):
    a -= 1
    a *= 2
    a /= 3
    return a


READ = {
    "mean of a 3-D value": lambda self, x: x.flatten(2).mean((1, 2), keepdim=True),
    "mean of 3, 2": lambda self, x: x.mean([3, 2]),
    "mean of -1": lambda self, x: x.mean(dim=-1),
    "permute by negative axes": lambda self, x: x.permute(-4, -1, 1, -2),
    "transpose of negative axes": lambda self, x: x.transpose(-1, -3),
    "view in the middle": lambda self, x: x.view(x.size(0), 4, -1, 2),
    "view -1 first": lambda self, x: x.view(-1, x.size(1) * x.size(2) * x.size(3)),
    "view of two axes": lambda self, x: x.reshape(x.shape[0], 8 // x.size(1), -1),
    "flatten -3": lambda self, x: x.flatten(-3),
    "flatten of one axis": lambda self, x: x.flatten(2, 2),
    "unflatten -1": lambda self, x: x.unflatten(-1, (-1, 2)),
    "cat of three": lambda self, x: torch.cat((x, x.relu(), x), -2),
    "cat of itself": lambda self, x: torch.cat([x, x], 1),
    "index from behind": lambda self, x: x[:, ::2, 1:-1, -2:],
    "index None": lambda self, x: x[:, None],
    "index after an ellipsis": lambda self, x: x[..., 0],
    "index of all axes after an ellipsis": lambda self, x: x[..., :, 1:, :, :],
    "index a setting": lambda self, x: x[:, len(self.conv.kernel_size)],
    "last chunk of uneven ones": lambda self, x: x.chunk(4, 3)[-1],
    "split in parts": lambda self, x: torch.split(x, [1, 3], dim=-3)[1],
    "squeeze of several axes": lambda self, x: x.mean((2, 3), True).squeeze((2, 3)),
    "squeeze of nothing": lambda self, x: x.squeeze(1),
    "unsqueeze -2": lambda self, x: x.unsqueeze(-2),
    "square": lambda self, x: x * x,
    "nothing": lambda self, x: x - x,
    "trained constant": lambda self, x: self.weight.exp() - x * self.weight,
    "buffer in float64": lambda self, x: (x - self.wide) / self.wide,
    "whole numbers": lambda self, x: x / torch.tensor([1, 2, 3, 4, 5, 6]),
    "value broadcast in a product": lambda self, x: x.mean((2, 3))[:, :, None, None] * x,
    "clamp to a point": lambda self, x: x.clamp(0.1, 0.1),
    "clamp with an infinite side": lambda self, x: x.clamp(-torch.inf, 0.1),
    "constant first": lambda self, x: torch.maximum(torch.tensor(0.1), x),
    "padding that crops": lambda self, x: F.pad(x, (-1, -2, 1, -1), value=2),
    "upsampling that drops": lambda self, x: F.interpolate(x, scale_factor=0.7, mode="nearest-exact"),
    "upsampling of sequences": lambda self, x: F.interpolate(x.flatten(2), scale_factor=1.3),
    "unshuffled pixels": lambda self, x: F.pixel_unshuffle(x, 2),
    "-=, *= and /=": lambda self, x: halved(x * 1),
    "mul_": lambda self, x: (x * 1).mul_(2).sub_(self.weight).div_(3),
}

REFUSED = {
    "mean of the middle of five axes": lambda self, x: x.unflatten(1, (2, 2)).mean((2, 3)),
    "mean of the batch": lambda self, x: x.mean((0, 1)),
    "mean of the batch from behind": lambda self, x: x.mean(-4, keepdim=True),
    "mean of all": lambda self, x: x.mean(),
    "permute of the batch": lambda self, x: x.permute(1, 0, 2, 3),
    "transpose of the batch": lambda self, x: x.transpose(-4, -1),
    "view of the batch": lambda self, x: x.view(x.size(0) * x.size(1), -1),
    "view of -1 and too little": lambda self, x: x.reshape(-1, 4, 6),
    "flatten of the batch": lambda self, x: x.flatten(-4, -3),
    "unflatten of the batch": lambda self, x: x.unflatten(0, (1, -1)),
    "unflatten of the batch from behind": lambda self, x: x.unflatten(-4, (-1, 1)),
    "cat of the batch": lambda self, x: torch.cat([x, x]),
    "cat of the batch from behind": lambda self, x: torch.cat([x, x], -4),
    "cat with a constant": lambda self, x: torch.cat([x, torch.zeros(4, 1, 4, 6)], 1),
    "index of the batch": lambda self, x: x[::2],
    "index of the batch behind an ellipsis": lambda self, x: x[..., 0, :, :, :],
    "slice of the batch behind an ellipsis": lambda self, x: x[..., 1:, :, :, :],
    "axis before the batch behind an ellipsis": lambda self, x: x[..., None, :, :, :, :],
    "chunk of the batch from behind": lambda self, x: x.chunk(2, -4)[0],
    "chunk with a computed number": lambda self, x: x.chunk(2, 1)[x.size(1) - 3],
    "squeeze of the batch": lambda self, x: x.squeeze(-4),
    "squeeze of the batch among others": lambda self, x: x.mean((2, 3), True).squeeze((0, 3)),
    "unsqueeze before the batch": lambda self, x: x.unsqueeze(-5),
    "convolution without a batch": lambda self, x: self.conv(x.flatten(2)),
    "max pool without a batch": lambda self, x: F.max_pool2d(x.flatten(2), 2),
    "average pool without a batch": lambda self, x: F.avg_pool2d(x.flatten(2), 2),
    "global pool without a batch": lambda self, x: F.adaptive_avg_pool2d(x.flatten(2), 1),
    "pixels shuffled out of the batch": lambda self, x: F.pixel_shuffle(x[:, 0], 2),
    "pixels unshuffled without a batch": lambda self, x: F.pixel_unshuffle(x[:, 0], 2),
    "alpha": lambda self, x: torch.add(x, x.relu(), alpha=2),
    "rounding": lambda self, x: torch.div(x, 2, rounding_mode="floor"),
    "quotient of values": lambda self, x: 1 / x,
    "constant for each image": lambda self, x: x + torch.arange(4.0).view(4, 1, 1, 1),
    "number of images": lambda self, x: x * x.size(0),
    "product over images": lambda self, x: x.mean((1, 2, 3)) * x,
    "asked for its type": lambda self, x: x.relu() if isinstance(x, Tensor) else x,
    "where": lambda self, x: torch.where(x > 0, x, -x),
    "max over an axis": lambda self, x: x.max(1)[0],
    "max over a named axis": lambda self, x: x.max(dim=1).values,
    "max of two": lambda self, x: torch.maximum(x, x.relu()),
    "clamp by a value": lambda self, x: x.clamp(max=x.relu()),
    "dropout by default": lambda self, x: F.dropout(x),
    "bilinear": lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "size of another value": lambda self, x: F.interpolate(x.mean((2, 3), True), x.shape[2:]),
    "sizes of another value": lambda self, x: F.interpolate(x.mean((2, 3), True), (x.size(2), x.size(3))),
    "reflection": lambda self, x: F.pad(x, (1, 1), "reflect"),
    "padding of the batch": lambda self, x: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)),
    "random": lambda self, x: x + torch.rand(6),
    "layer made on the way": lambda self, x: nn.Unflatten(-1, (2, 3))(x),
    "a misspelt layer": lambda self, x: self.missing(x),
    "in place on a view": lambda self, x: torch.cat([x.mul_(2), x.chunk(2, 1)[0]], 1) + x.view(-1, 4, 4, 6).add_(1),
    "in place on a constant": lambda self, x: F.relu(self.weight, inplace=True) + x,
    **{f"a {name}= 2 of a value with two names": changed(name) for name in ("+", "-", "*", "/", "**")},
}


def made(function):
    torch.manual_seed(0)
    return Net(function).double().eval().requires_grad_(False)


def ran(network, x, *, fold):
    values = [x]
    for node in read(program_of(network), fold=fold):
        values.append(node.operation.apply(*(values[number] for number in node.inputs)))
    return values[-1]


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_what_torch_computes_for_any_batch(name):
    network = made(READ[name])
    for size in (1, 3, 4):
        x = torch.rand(size, *SHAPE, dtype=torch.float64)
        for fold in (True, False):
            torch.testing.assert_close(ran(network, x, fold=fold), network(x), rtol=1e-12, atol=1e-12)
        together = interval_bounds(network, x - 0.1, x + 0.1)
        alone = [interval_bounds(network, x[i : i + 1] - 0.1, x[i : i + 1] + 0.1) for i in range(size)]
        torch.testing.assert_close(together, tuple(map(torch.cat, zip(*alone, strict=True))))
        point = network(x + 0.1 * (2 * torch.rand_like(x) - 1))
        assert ((together[0] - 1e-9 <= point) & (point <= together[1] + 1e-9)).all()


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("size", [1, 4])
def test_what_mixes_images_or_computes_something_else_is_refused(name, size):
    network = made(REFUSED[name])
    before = copy.deepcopy(network.state_dict())
    x = torch.rand(size, *SHAPE, dtype=torch.float64)
    with pytest.raises(UnsupportedLayerError):
        interval_bounds(network, x - 0.1, x + 0.1)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
