"""Random programs over every known operation, with every setting: no attack finds a margin below a bound.

`python -m pytest -m slow tests/bounds/test_soundness_fuzz.py` looks at many more of them.
"""

from __future__ import annotations

import copy
import random
from fractions import Fraction

import pytest
import torch
from attack import attacked, corners, margins
from torch import nn

from hydrabench.bounds import BOUNDS, deployed_margins, patches, prepared, rounding_bound, sound_margins
from hydrabench.models.normalize import Normalize

LINF, L2 = (0.0, 1 / 1024, 1 / 32, 1 / 8, 1 / 2), (0.0, 1 / 64, 1 / 4, 1.0, 3.0)
BALLS = {"linf": LINF, "l2": L2}


class Plan(nn.Module):
    """Values computed one from another by (layer, or None for a sum; numbers of the values taken); returns the last."""

    def __init__(self, steps):
        super().__init__()
        self.layers = nn.ModuleList(layer or nn.Identity() for layer, _ in steps)
        self.steps = [(layer is None, inputs) for layer, inputs in steps]

    def forward(self, x):
        values = [x]
        for layer, (is_sum, inputs) in zip(self.layers, self.steps, strict=True):
            values.append(values[inputs[0]] + values[inputs[1]] if is_sum else layer(values[inputs[0]]))
        return values[-1]


# Programs --------------------------------------------------------------------------------------


def vector_layer(rng, features):
    kind = rng.randrange(6)
    if kind < 2:
        return nn.Linear(features, rng.choice((features, 3, 5)), bias=rng.random() < 0.6)
    if kind < 4:
        return nn.ReLU()
    return nn.BatchNorm1d(features) if kind == 4 else rng.choice((nn.Identity(), nn.Dropout(0.3), nn.Flatten()))


def convolution(rng, channels, sides):
    groups = rng.choice([count for count in (1, 1, 2, 3) if channels % count == 0])
    out, bias = groups * rng.choice((1, 2)), rng.random() < 0.5
    if rng.random() < 0.2:
        return nn.Conv2d(channels, out, rng.choice((1, 3)), 1, "same", rng.choice((1, 2)), groups, bias)
    kernel = [rng.randint(1, min(4, side + 2)) for side in sides]
    stride, padding, dilation = (
        [rng.choice(choice) for _ in range(2)] for choice in ((1, 1, 2, 3), range(4), (1, 1, 2))
    )
    return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias)


def pooling(rng):
    kernel, stride = [rng.randint(1, 3) for _ in range(2)], [rng.randint(1, 3) for _ in range(2)]
    padding = [rng.randint(0, size // 2) for size in kernel]
    if rng.random() < 0.5:
        return nn.MaxPool2d(kernel, stride, padding, [rng.choice((1, 1, 2)) for _ in range(2)])
    if rng.random() < 0.5:
        return nn.AvgPool2d(kernel, stride, padding, count_include_pad=rng.random() < 0.5)
    return nn.AdaptiveAvgPool2d(rng.choice(((2, 3), (None, 2), (5, 5), (1, 1), (1, None))))


def image_layer(rng, channels, sides):
    kind = rng.randrange(14)
    if kind < 4:
        return convolution(rng, channels, sides)
    if kind < 7:
        return nn.ReLU()
    if kind < 10:
        return pooling(rng)
    if kind == 10:
        return nn.BatchNorm2d(channels, eps=rng.choice((1e-5, 0.1)), affine=rng.random() < 0.7)
    mean, std = ([rng.uniform(low, high) for _ in range(channels)] for low, high in ((-0.5, 0.5), (0.2, 2)))
    over_last_axis = nn.Linear(sides[1], rng.choice((sides[1], 2)))
    return (over_last_axis, Normalize(mean, std), rng.choice((nn.Flatten(), nn.Identity())))[kind - 11]


@torch.no_grad()
def fill(layer, rng, generator, *, extreme):
    """Weights of size 1, or from 1/1000 to 1000; some of them 0, some whole numbers, so that values tie."""
    for parameter in layer.parameters():
        size = 10 ** rng.uniform(-3, 3) if extreme else 1.0
        drawn = torch.randn(parameter.shape, generator=generator) * size / max(1, parameter[0].numel()) ** 0.5
        kept = torch.rand(parameter.shape, generator=generator) < rng.choice((0.4, 1, 1, 1))
        parameter.copy_(drawn.round() if rng.random() < 0.1 else drawn * kept)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.running_mean.normal_(generator=generator)
        layer.running_var.uniform_(0.2, 2, generator=generator)


class Builder:
    """The steps so far, and the values that they give some images."""

    def __init__(self, x, rng, generator, *, extreme):
        self.values, self.steps, self.given = [x], [], (rng, generator, extreme)

    def add(self, layer, *inputs):
        """The number of the new value; None if torch refuses the layer, or nothing finite is left."""
        rng, generator, extreme = self.given
        taken = [self.values[number] for number in inputs]
        try:
            if layer is not None:
                fill(layer, rng, generator, extreme=extreme)
            value = taken[0] + taken[1] if layer is None else layer.eval()(taken[0])
        except RuntimeError:
            return None
        if not value.numel() or not value.isfinite().all():
            return None
        self.values.append(value)
        self.steps.append((layer, inputs))
        return len(self.values) - 1


def random_program(seed):
    """A float32 network in eval mode whose values branch and meet, images with pixels at 0 and 1, labels."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    shape, classes = rng.choice(((2, 5, 4), (1, 3, 3), (3, 6, 6), (1, 2, 3), (2, 4, 7))), rng.choice((2, 3, 4))
    x = (1.4 * torch.rand(rng.choice((1, 2, 3)), *shape, generator=generator) - 0.2).clamp(0, 1)
    builder = Builder(x, rng, generator, extreme=seed % 3 == 0)
    for _ in range(rng.randint(3, 14)):
        last = len(builder.values) - 1
        source = rng.randrange(max(0, last - 2), last + 1) if rng.random() < 0.3 else last
        value = builder.values[source]
        if rng.random() < 0.2:
            partners = [number for number, other in enumerate(builder.values) if other.shape == value.shape]
            builder.add(None, source, rng.choice(partners))
        elif value.ndim == 2:
            builder.add(vector_layer(rng, value.shape[1]), source)
        else:
            builder.add(image_layer(rng, value.shape[1], value.shape[2:]), source)
    total, read = None, {number for _, inputs in builder.steps for number in inputs}
    for number in [number for number in range(len(builder.values)) if number not in read]:
        flat = builder.add(nn.Flatten(), number)
        logits = builder.add(nn.Linear(builder.values[flat].shape[1], classes, bias=rng.random() < 0.7), flat)
        total = logits if total is None else builder.add(None, total, logits)
    network = Plan(builder.steps).eval().requires_grad_(False)
    return network, x, builder.values[-1].argmax(1), generator


# Properties ------------------------------------------------------------------------------------


def check_soundness(seed):
    """Bounds in both precisions, less what rounding explains, and rigorous ones; returns how many are positive."""
    network, x, y, generator = random_program(seed)
    wide, exact_x, positive = copy.deepcopy(network).double(), x.double(), 0
    for norm, radii in BALLS.items():
        epsilon = radii[generator.initial_seed() // 2 % len(radii)]
        lowest = attacked(wide, exact_x, y, epsilon, norm, generator)
        if norm == "linf" and x[0].numel() <= 9:
            lowest = lowest.minimum(corners(wide, exact_x, y, epsilon))
        reach = lowest + 1e-12 * (1 + lowest.abs() + wide(exact_x).abs().amax(1))  # rounding of the attack
        for kind, bound in BOUNDS.items():
            for model, images in ((network, x), (wide, exact_x)):
                lower = bound(prepared(model) if seed % 2 else model, images, y, epsilon, norm=norm)
                claimed = lower - rounding_bound(model, images, y, epsilon, kind=kind)
                assert (claimed <= reach).all(), (seed, kind, norm, epsilon, lower, reach)
                positive += int((lower > 0).sum())
    epsilon = LINF[seed // 2 % len(LINF)]
    for kind in ("ibp", "crown-ibp"):
        lower = sound_margins(network, x, y, Fraction(epsilon), kind=kind)
        assert (lower <= attacked(wide, exact_x, y, epsilon, "linf", generator) + 1e-12 * (1 + lower.abs())).all(), seed
        assert (deployed_margins(network, x, y, Fraction(epsilon), kind=kind) <= margins(network, x, y).double()).all()
    return positive


def check_ways_of_computing(seed, monkeypatch):
    """A bound does not depend on memory, layout, the rest of the batch, or whether gradients are wanted."""
    network, x, y, _ = random_program(seed)
    network, x = network.double(), x.double()
    for norm, epsilon in (("linf", 1 / 32), ("l2", 1 / 4)):
        for kind, bound in BOUNDS.items():
            with torch.no_grad():
                plain = bound(network, x, y, epsilon, norm=norm)
                with monkeypatch.context() as patch:
                    patch.setitem(patches.CHUNK, "cpu", 500)
                    found = {"chunks": bound(network, x, y, epsilon, norm=norm)}
                found["memory"] = bound(network, x, y, epsilon, norm=norm, memory=1)
                found["layout"] = bound(network, x.contiguous(memory_format=torch.channels_last), y, epsilon, norm=norm)
                found["strides"] = bound(network, x.mT.contiguous().mT, y, epsilon, norm=norm)
                alone = [bound(network, x[i : i + 1], y[i : i + 1], epsilon, norm=norm) for i in range(len(y))]
                found["alone"] = torch.cat(alone)
            found["gradients"] = bound(network.requires_grad_(), x, y, epsilon, norm=norm).detach()
            network.requires_grad_(False)
            size = 1 + float(plain.abs().max() + network(x).abs().max())
            for way, lower in found.items():
                message = f"{seed} {kind} {norm} {way}"
                torch.testing.assert_close(lower, plain, rtol=1e-8, atol=1e-9 * size, msg=message)


@pytest.mark.parametrize("start", [0, 6])
def test_no_attack_finds_a_margin_below_a_bound(start):
    """Of 6 random programs at a time; most have images that are certified."""
    assert sum(check_soundness(seed) for seed in range(start, start + 6)) > 20


@pytest.mark.parametrize("seed", range(100, 104))
def test_every_way_of_computing_a_bound_gives_the_same(seed, monkeypatch):
    check_ways_of_computing(seed, monkeypatch)


def test_the_programs_hold_every_layer():
    kinds = {type(layer) for seed in range(60) for layer in random_program(seed)[0].layers}
    assert kinds >= {nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.Dropout, Normalize}
    assert kinds >= {nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity}


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 2000, 50))
def test_no_attack_finds_a_margin_below_a_bound_of_many_programs(start, monkeypatch):
    assert sum(check_soundness(seed) for seed in range(start, start + 50)) > 20
    for seed in range(start, start + 10):
        check_ways_of_computing(seed, monkeypatch)
