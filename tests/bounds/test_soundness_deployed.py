"""Float32 networks that round as badly as a sum of their length can, against the margins claimed for them.

Half of what is claimed is reached, but for the few roundings that are allowed besides those of a sum, `rounding.MORE`;
the other half is that `rounding.growth` doubles what theory says. A claim 0.49 times as large is refuted here.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from hydrabench.bounds.sound import STOPS, deployed_margins, sound_margins

TERMS, UNIT, TINY = 4096, 2.0**-24, 2.0**-126  # of float32: relative error of a rounding, smallest normal number
every_kind = pytest.mark.parametrize("kind", STOPS)


def rising_and_falling(sign, start=1.0):
    """Terms whose sum, taken in this order, comes out too small by nearly UNIT each, and as much too large.

    From 1 on float32 numbers are 2 UNIT apart: a term somewhat below UNIT is lost, one somewhat above counts twice.
    """
    lost, doubled = (torch.full((TERMS,), sign * UNIT * (1 + bias)) for bias in (-(2.0**-10), 2.0**-10))
    lost[0] = doubled[0] = start
    return torch.stack([lost, doubled] if sign > 0 else [doubled, lost])


def added_up(products, order):
    """Sums of float32 products (outputs, terms), one after the other."""
    total = torch.zeros(len(products))
    for place in order.tolist():
        total = total + products[:, place]
    return total


ORDERS = {
    "forward": torch.arange(TERMS),
    "backward": torch.arange(TERMS).flip(0),
    "shuffled": torch.randperm(TERMS, generator=torch.Generator().manual_seed(0)),
}
SUMS = {
    "growing": rising_and_falling(1),
    # Large enough to stay above 1, so that numbers stay as far apart.
    "cancelling": rising_and_falling(-1, start=1 + 2.0**-10),
}


def share(network, x, logits, kind):
    """How much of what is claimed these logits need: more than 1 refutes the claim."""
    exact, claimed = (
        margins(network, x, torch.tensor([0]), Fraction(0), kind=kind).item()
        for margins in (sound_margins, deployed_margins)
    )
    return (exact - float(logits[0].double() - logits[1].double())) / (exact - claimed)


def linear(weight):
    layer = nn.Linear(weight.shape[1], len(weight), bias=False)
    layer.weight.data = weight.clone()
    return layer


def whole(weight, channels):
    """A convolution whose single window is the image."""
    side = int((TERMS / channels) ** 0.5)
    layer = nn.Conv2d(channels, len(weight), side, bias=False)
    layer.weight.data = weight.view(len(weight), channels, side, side).clone()
    return layer


LAYERS = {
    "linear": (lambda weight: nn.Sequential(nn.Flatten(), linear(weight)), (1, 64, 64)),
    "convolution": (lambda weight: nn.Sequential(whole(weight, 1), nn.Flatten()), (1, 64, 64)),
    "many channels": (lambda weight: nn.Sequential(whole(weight, 16), nn.Flatten()), (16, 16, 16)),
}


@every_kind
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("terms", SUMS)
def test_a_long_sum_comes_half_as_far_as_claimed_in_the_order_that_is_worst(kind, layer, order, terms):
    weight = torch.empty_like(SUMS[terms])
    weight[:, ORDERS[order]] = SUMS[terms]
    make, shape = LAYERS[layer]
    network = make(weight).eval().requires_grad_(False)
    assert 0.49 < share(network, torch.ones(1, *shape), added_up(weight, ORDERS[order]), kind) <= 1


@every_kind
@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_so_does_what_later_layers_make_of_it(kind, scale):
    """Logits (s a, s b) of sums (a, b), behind a ReLU: multiplied by a power of 2, which is exact."""
    sums = SUMS["growing"]
    last = linear(scale * torch.eye(2))
    network = nn.Sequential(nn.Flatten(), linear(sums), nn.ReLU(), last).eval().requires_grad_(False)
    logits = last(added_up(sums, ORDERS["forward"]).relu())
    assert 0.48 < share(network, torch.ones(1, 1, 64, 64), logits, kind) <= 1


@every_kind
@pytest.mark.parametrize("pool", [nn.AvgPool2d(64), nn.AdaptiveAvgPool2d(1)], ids=["average", "adaptive"])
def test_means_come_a_quarter_as_far_as_claimed(kind, pool):
    """The pixels themselves; twice their number of roundings is claimed for a mean, which may multiply each term."""
    pixels = SUMS["growing"].view(1, 2, 64, 64)
    network = nn.Sequential(pool, nn.Flatten()).eval()
    logits = added_up(SUMS["growing"], ORDERS["forward"]) / TERMS
    assert 0.24 < share(network, pixels, logits, kind) <= 1


@every_kind
def test_products_that_a_device_flushes_to_zero_come_as_far_as_claimed(kind):
    """4096 products of just under 2^-126, all of one sign in a row."""
    weight = torch.full((2, TERMS), TINY * (1 - 2.0**-20) * 2.0**20, dtype=torch.float64).float()
    weight[1] *= -1
    network = nn.Sequential(nn.Flatten(), linear(weight)).eval().requires_grad_(False)
    x = torch.full((1, 1, 64, 64), 2.0**-20)
    assert (weight.abs() * x[0, 0, 0, 0] < TINY).all()
    assert 0.98 < share(network, x, torch.zeros(2), kind) <= 1


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.flat = nn.MaxPool2d(3, 1, 1), nn.Flatten()

    def forward(self, x):
        return self.flat(x + self.pool(x))


@every_kind
def test_a_single_sum_may_round(kind):
    """Pixels (1, a), a just above 2^-24, and their maximum 1: logits (2, 1 + a), where 1 + a is rounded up."""
    x = torch.tensor([1.0, UNIT * (1 + 2.0**-10)]).view(1, 1, 1, 2)
    logits = Sum()(x)[0]
    assert logits.tolist() == [2.0, 1 + 2 * UNIT]
    assert 1 / 500 < share(Sum().eval(), x, logits, kind) <= 1


@every_kind
def test_what_cancels_in_the_shift_of_a_batch_norm_may_round(kind):
    """Pixels (0.1, 0): the shift b - M g of the second is 0.0625 + 2^-24, and 0.125 with M g in float32."""
    norm = nn.BatchNorm2d(2, eps=0.0).eval().requires_grad_(False)
    large = 2.0**20 + 1
    norm.weight[1], norm.running_mean[1], norm.bias[1] = 1 - UNIT, large, large
    network, x = nn.Sequential(norm, nn.Flatten()).eval(), torch.tensor([0.1, 0.0]).view(1, 2, 1, 1)
    shift = norm.bias - norm.running_mean * norm.weight
    assert shift.tolist() == [0.0, 0.125]
    logits = x.flatten() * norm.weight + shift
    assert sound_margins(network, x, torch.tensor([0]), Fraction(0), kind=kind) > 0.03
    assert logits[0] < logits[1]
    assert 0 < share(network, x, logits, kind) <= 1
