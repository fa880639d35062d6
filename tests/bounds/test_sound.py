"""Bounds with outward rounding never exceed exact arithmetic, and are as tight as float64."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import BOUNDS
from hydrabench.bounds.outward import down, up
from hydrabench.bounds.program.pooling import MaxPool
from hydrabench.bounds.program.relu import Relu
from hydrabench.bounds.sound import (
    STOPS,
    Enclosure,
    RoundedPass,
    deployed_margins,
    sound_margins,
)
from hydrabench.checkpoints import open_ref
from hydrabench.data import load_images
from hydrabench.errors import ConfigError

seeds = st.integers(0, 10_000)
numbers = st.floats(-1e6, 1e6) | st.floats(-1e-6, 1e-6) | st.sampled_from([0.0, -0.0, 1.0, 5e-324, -5e-324])
every_kind = pytest.mark.parametrize("kind", STOPS)
exact = np.vectorize(Fraction, otypes=[object])


def random_weight(rng: random.Random, shape, extreme: bool):
    """Float32 numbers, of like size or of sizes from 1e-30 to 1e30, some of them 0."""
    size = (lambda: 10.0 ** rng.uniform(-30, 30)) if extreme else (lambda: 1.0)
    values = [rng.choice((0, 1, 1, 1)) * rng.uniform(-1, 1) * size() for _ in range(int(np.prod(shape)))]
    return torch.tensor(values, dtype=torch.float32).view(*shape)


def random_network(rng: random.Random, *, extreme: bool):
    """Three linear layers, some with batch norm whose standard deviation is exact in binary, ReLUs between them."""
    widths = [3, rng.choice((2, 4)), rng.choice((2, 3)), 3]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Linear(before, after, bias=rng.random() < 0.7))
        if rng.random() < 0.4:
            layers.append(nn.BatchNorm1d(after, eps=0.0))
        layers.append(nn.ReLU())
    if rng.random() < 0.8:
        layers.pop()
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data = random_weight(rng, parameter.shape, extreme)
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean = random_weight(rng, layer.running_mean.shape, extreme)
            layer.running_var = torch.tensor([4.0 ** rng.randrange(-3, 4) for _ in range(layer.num_features)])
    return nn.Sequential(*layers).eval().requires_grad_(False)


def exact_layers(network):
    """(weights, bias) of every linear layer with the batch norm behind it, in fractions; None for a ReLU."""
    found = []
    for layer in network:
        if isinstance(layer, nn.Linear):
            bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
            found.append((exact(layer.weight.double().numpy()), exact(bias.double().numpy())))
        elif isinstance(layer, nn.BatchNorm1d):
            weight, bias = found.pop()
            gamma, beta, mean = (exact(t.double().numpy()) for t in (layer.weight, layer.bias, layer.running_mean))
            scale = gamma / exact(layer.running_var.double().sqrt().numpy())
            found.append((weight * scale[:, None], (bias - mean) * scale + beta))
        elif isinstance(layer, nn.ReLU):
            found.append(None)
    return found


def exact_margin(layers, x, y):
    for layer in layers:
        x = np.maximum(x, 0) if layer is None else layer[0] @ x + layer[1]
    return min(x[y] - other for j, other in enumerate(x) if j != y)


def exact_interval_margin(layers, lower, upper, y):
    """Interval bound propagation in fractions; the last linear layer is merged with the margins."""
    head = layers[-1] or (exact(np.eye(3)), exact(np.zeros(3)))
    for layer in layers[:-1] if layers[-1] else layers:
        if layer is None:
            lower, upper = np.maximum(lower, 0), np.maximum(upper, 0)
        else:
            center, radius = (lower + upper) / 2, (upper - lower) / 2
            center, radius = layer[0] @ center + layer[1], abs(layer[0]) @ radius
            lower, upper = center - radius, center + radius
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    rows = [(head[0][y] - head[0][j], head[1][y] - head[1][j]) for j in range(len(head[0])) if j != y]
    return min(row @ center - abs(row) @ radius + offset for row, offset in rows)


@pytest.mark.parametrize("extreme", [False, True])
def test_sound_bounds_never_exceed_exact_ones(extreme):
    """Exact interval bounds, and exact margins of the corners of the ball, of 600 networks; most are within 1e-12."""
    rng, close = random.Random(int(extreme)), 0
    for _ in range(300):
        network, y = random_network(rng, extreme=extreme), rng.randrange(3)
        layers = exact_layers(network)
        pixels = torch.tensor([rng.choice((0.0, 1.0, rng.random())) for _ in range(3)])
        epsilon = rng.choice((Fraction(0), Fraction(2, 255), Fraction(1, 3)))
        x = exact(pixels.double().numpy())
        lower, upper = np.maximum(x - epsilon, 0), np.minimum(x + epsilon, 1)
        found = {
            kind: sound_margins(network, pixels.view(1, 1, 1, 3), torch.tensor([y]), epsilon, kind=kind).item()
            for kind in STOPS
        }
        assert all(np.isfinite(bound) for bound in found.values())
        oracle = exact_interval_margin(layers, lower, upper, y)
        assert Fraction(found["ibp"]) <= oracle
        close += oracle - Fraction(found["ibp"]) <= Fraction(1, 10**12) * abs(oracle)
        for corner in itertools.product((False, True), repeat=3):
            assert Fraction(found["crown-ibp"]) <= exact_margin(layers, np.where(corner, upper, lower), y)
    assert close > 150


@every_kind
def test_a_linear_network_is_bounded_within_a_few_roundings_of_its_exact_minimum(kind):
    """Margins of a linear layer are smallest in a corner; both methods are exact there but for rounding."""
    rng = random.Random(1)
    for _ in range(100):
        layer = nn.Linear(3, 2)
        layer.weight.data, layer.bias.data = random_weight(rng, (2, 3), False), random_weight(rng, (2,), False)
        network, x = (
            nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False),
            torch.tensor([rng.random() for _ in range(3)]),
        )
        found = sound_margins(network, x.view(1, 1, 1, 3), torch.tensor([0]), Fraction(1, 10), kind=kind).item()
        pixels = exact(x.double().numpy())
        lower, upper = np.maximum(pixels - Fraction(1, 10), 0), np.minimum(pixels + Fraction(1, 10), 1)
        lowest = exact_interval_margin(exact_layers(network), lower, upper, 0)
        assert lowest - Fraction(1, 10**13) < Fraction(found) <= lowest


@every_kind
@settings(max_examples=30)
@given(seed=seeds, epsilon=st.fractions(0, Fraction(1, 5)))
def test_sound_bounds_lie_just_below_those_in_float64(tiny_problem, kind, seed, epsilon):
    network, x, y, _ = tiny_problem(seed)
    plain = BOUNDS[kind](network, x, y, float(epsilon))
    found = sound_margins(network, x, y, epsilon, kind=kind)
    assert found.dtype == torch.float64
    assert (found <= plain).all()
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9)


@every_kind
@settings(max_examples=30)
@given(seed=seeds, epsilon=st.fractions(0, Fraction(1, 5)))
def test_sound_bounds_hold_where_values_branch_and_pool(tiny_dag, kind, seed, epsilon):
    """CROWN may break a tie between the values of a window in another way than float64 does; intervals have no ties."""
    network, x, y, rng = tiny_dag(seed)
    plain, found = BOUNDS[kind](network, x, y, float(epsilon)), sound_margins(network, x, y, epsilon, kind=kind)
    if kind == "ibp" or epsilon == 0:
        assert (found <= plain + 1e-12).all()
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-7)
    for _ in range(4):
        step = (2 * torch.rand(x.shape, generator=rng, dtype=x.dtype) - 1).sign()
        logits = network((x + float(epsilon) * step).clamp(0, 1))
        others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        assert (found <= logits.gather(1, y.unsqueeze(1)).squeeze(1) - others + 1e-12).all()


@every_kind
@pytest.mark.parametrize("name", ["digits-crown-ibp", "digits-crown-ibp-95", "digits-trades-90"])
def test_nothing_is_lost_on_a_real_network(kind, name):
    network, images = open_ref(name).baked().eval(), load_images("digits", "test", None, download=False)
    x, y = images.take(torch.arange(40)).float() / 255, images.labels[:40]
    found = sound_margins(network, x, y, Fraction(1, 16), kind=kind)
    with torch.no_grad():
        plain = BOUNDS[kind](network.double(), x.double(), y, 1 / 16)
    assert (found <= plain).all()
    assert (plain - found <= 1e-9 * plain.abs().median()).all()


@every_kind
def test_rounding_cannot_turn_a_sound_verdict(cancelling, kind):
    """The margin of a pixel of 1 is -1/2. In float32 2^25 - 1 is 2^25 and in float64 2^54 - 1 is 2^54: +1/2."""
    x, y = torch.ones(1, 1, 1, 1), torch.tensor([0])
    small, large = cancelling(2.0**25), cancelling(2.0**54)
    assert BOUNDS[kind](small, x, y, 0.0).item() == 0.5
    assert BOUNDS[kind](large.double(), x.double(), y, 0.0).item() == 0.5
    for network in (small, large.float()):
        assert sound_margins(network, x, y, Fraction(0), kind=kind).item() <= -0.5


@settings(max_examples=200)
@given(a=numbers, b=numbers)
def test_directed_rounding_encloses_sums(a, b):
    total = Fraction(a) + Fraction(b)
    rounded = torch.tensor(a, dtype=torch.float64) + b
    assert Fraction(down(rounded).item()) <= total <= Fraction(up(rounded).item())


@settings(max_examples=200)
@given(ends=st.tuples(numbers, numbers).map(sorted))
def test_lines_around_a_relu_hold_exactly(ends):
    low, high = (torch.tensor([end], dtype=torch.float64) for end in ends)
    lines = Relu().rounded_lines(low, high)
    below, slope, offset = (Fraction(line.item()) for line in (lines.below[0], lines.above[0], lines.high))
    for z in (*map(Fraction, ends), sum(map(Fraction, ends)) / 2):
        assert below * z <= max(z, 0) <= slope * z + offset


@settings(max_examples=200)
@given(boxes=st.lists(st.tuples(numbers, numbers).map(sorted), min_size=4, max_size=4))
def test_lines_around_a_maximum_hold_exactly(boxes):
    operation = MaxPool((2, 2), (2, 2), (0, 0), (1, 1))
    low, high = (torch.tensor(end, dtype=torch.float64).view(1, 1, 2, 2) for end in zip(*boxes, strict=True))
    lines = operation.rounded_lines(low, high)
    slope, offset = Fraction(lines.slope.item()), Fraction(lines.high.item())
    for z in itertools.product(*(map(Fraction, box) for box in boxes)):
        assert z[lines.below.item()] <= max(z) <= slope * z[lines.above.item()] + offset


@settings(max_examples=100)
@given(pixel=st.floats(0, 1, width=32), epsilon=st.fractions(0, 1))
def test_the_ball_holds_the_exact_one(pixel, epsilon):
    ball = Enclosure.ball(torch.tensor([[pixel]]), epsilon)
    assert Fraction(ball.lower().item()) <= max(Fraction(pixel) - epsilon, 0)
    assert Fraction(ball.upper().item()) >= min(Fraction(pixel) + epsilon, 1)
    assert Fraction((ball.upper() - ball.lower()).item()) <= 2 * epsilon + Fraction(1, 10**14)


@settings(max_examples=200)
@given(entries=st.lists(st.tuples(numbers, numbers, st.just(0.0) | numbers.map(abs)), min_size=2, max_size=6))
def test_functions_of_a_box_are_minimised_soundly(entries):
    """Boxes of no width, too, and functions whose terms cancel."""
    rows, lower, width = (torch.tensor([column + column], dtype=torch.float64) for column in zip(*entries, strict=True))
    rows[0, len(entries) :] *= -1
    upper = lower + width
    found = RoundedPass([], Enclosure.between(lower, upper)).lowest(rows.unsqueeze(1), 0).item()
    columns = zip(*(column[0].tolist() for column in (rows, lower, upper)), strict=True)
    ends = [[Fraction(a) * Fraction(b) for b in pair] for a, *pair in columns]
    assert Fraction(found) <= sum(map(min, ends))


@every_kind
def test_a_sound_verdict_ignores_the_rest_of_its_batch_and_memory(tiny_problem, kind):
    network, x, y, _ = tiny_problem(5)
    whole = sound_margins(network, x, y, Fraction(1, 20), kind=kind)
    parts = sound_margins(network, x, y, Fraction(1, 20), kind=kind, memory=0)
    torch.testing.assert_close(whole, parts, rtol=1e-10, atol=1e-10)
    assert next(network.parameters()).dtype == torch.float64
    x[1] = torch.nan
    assert sound_margins(network, x, y, Fraction(1, 20), kind=kind).isnan().tolist() == [False, True, False]


@every_kind
@pytest.mark.parametrize("margins", [sound_margins, deployed_margins])
def test_of_no_images_there_are_no_sound_margins(tiny_problem, kind, margins):
    network, x, y, _ = tiny_problem(1)
    found = margins(network, x[:0], y[:0], Fraction(1, 10), kind=kind)
    assert (found.shape, found.dtype) == ((0,), torch.float64)


@every_kind
def test_numbers_that_are_too_large_are_no_proof(kind):
    """Four layers of 3e38 exceed float64 by far."""
    layers = [nn.Linear(1, 1) for _ in range(10)] + [nn.Linear(1, 2)]
    for layer in layers:
        layer.weight.data.fill_(3e38)
    layers[-1].weight.data[1] = -3e38
    network = nn.Sequential(nn.Flatten(), *layers).eval()
    found = sound_margins(network, torch.ones(1, 1, 1, 1), torch.tensor([0]), Fraction(0), kind=kind)
    assert not found > 0


def test_a_method_without_sound_rules_is_named(tiny_problem):
    network, x, y, _ = tiny_problem(0)
    with pytest.raises(ConfigError, match=r"unknown sound method 'crown'; .*choose one of: crown-ibp, ibp"):
        sound_margins(network, x, y, Fraction(1, 10), kind="crown")
    with pytest.raises(ValueError, match="epsilon="):
        sound_margins(network, x, y, Fraction(-1, 10), kind="ibp")
