"""The pieces of PGD worked by hand; its points stay in the ball; on a linear network it is optimal."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn

from hydrabench.attacks import (
    LOSSES,
    ascend,
    default_step_size,
    margin,
    pgd,
    project,
    random_start,
    steepest,
    unit_noise,
)
from hydrabench.errors import ConfigError
from hydrabench.threat import AttackNorm, linf_box

NORMS = list(get_args(AttackNorm))
seeds = st.integers(0, 2**31)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(a, b):
    """One image of two pixels."""
    return torch.tensor([[[[a, b]]]], dtype=torch.float64)


def conv_network(seed=0, dtype=torch.float32):
    """A small network with random weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )
    return network.eval().to(dtype)


def images(seed, count=5, dtype=torch.float32):
    """Images of 4 x 4 pixels, some of which are exactly 0 or 1."""
    return (torch.rand(count, 1, 4, 4, generator=rng(seed)) * 1.4 - 0.2).clamp(0, 1).to(dtype)


def length(offset, norm):
    flat = offset.double().flatten(1)
    return flat.norm(p={"linf": float("inf"), "l2": 2, "l1": 1}[norm], dim=1)


def test_linf_projection_worked_by_hand():
    """Ball of radius 0.2 around (0.5, 0.9): [0.3, 0.7] x [0.7, 1], the second clipped to the pixel range."""
    assert project(pair(0.1, 1.3), pair(0.5, 0.9), 0.2, norm="linf").flatten().tolist() == pytest.approx([0.3, 1.0])


def test_l2_projection_worked_by_hand():
    """The offset (0.3, 0.4) has length 0.5; at radius 0.25 it is halved."""
    assert project(pair(0.8, 0.9), pair(0.5, 0.5), 0.25, norm="l2").flatten().tolist() == pytest.approx([0.65, 0.7])


def test_l2_projection_clamps_after_it_has_shrunk_the_offset():
    """Around (0.5, 0.9) the halved offset (0.15, 0.2) leads to (0.65, 1.1), clamped to (0.65, 1)."""
    assert project(pair(0.8, 1.3), pair(0.5, 0.9), 0.25, norm="l2").flatten().tolist() == pytest.approx([0.65, 1.0])


def test_l1_projection_worked_by_hand():
    """The offset (0.3, -0.4) becomes (0.1, -0.2): both shrink by 0.2 until 0.3 are left."""
    assert project(pair(0.8, 0.1), pair(0.5, 0.5), 0.3, norm="l1").flatten().tolist() == pytest.approx([0.6, 0.3])


def test_l1_projection_gives_what_the_pixel_range_takes_to_other_pixels():
    """(0.5, 0.4) has room for 0.1 in the first pixel: 0.1 and 0.2 use 0.3 up; shrunk first, (0.2, 0.1) would be cut."""
    found = project(pair(1.4, 0.9), pair(0.9, 0.5), 0.3, norm="l1")
    assert found.flatten().tolist() == pytest.approx([1.0, 0.7])


@given(seed=seeds, epsilon=st.floats(0.05, 3))
@settings(max_examples=40)
def test_no_other_point_of_the_l1_ball_and_the_pixel_range_is_nearer(seed, epsilon):
    """The projection onto a convex set is the point q with (p - q)·(z - q) <= 0 for all its points z."""
    x = images(seed, dtype=torch.float64)
    points = x + torch.randn(x.shape, generator=rng(seed + 1)).double()
    nearest = project(points, x, epsilon, norm="l1")
    for other in range(20):
        noise = unit_noise(x.shape, norm="l1", generator=rng(seed + other)).double()
        point = (x + epsilon * noise / length(noise, "l1").view(-1, 1, 1, 1)).clamp(0, 1)
        assert ((points - nearest) * (point - nearest)).flatten(1).sum(1).max() <= 1e-9


def test_steps_worked_by_hand():
    """Signs of (3, -4); its direction is (0.6, -0.8); in L1 the larger of the two."""
    moved = steepest(pair(0.5, 0.5), pair(3.0, -4.0), 0.1, norm="linf")
    assert moved.flatten().tolist() == pytest.approx([0.6, 0.4])
    moved = steepest(pair(0.5, 0.5), pair(3.0, -4.0), 0.5, norm="l2")
    assert moved.flatten().tolist() == pytest.approx([0.8, 0.1])
    moved = steepest(pair(0.5, 0.5), pair(3.0, -4.0), 0.5, norm="l1")
    assert moved.flatten().tolist() == pytest.approx([0.5, 0.0])


def test_a_step_in_l1_moves_a_pixel_that_can_move():
    """The second pixel has the largest entry, but is 0 already and would fall."""
    assert steepest(pair(0.5, 0.0), pair(3.0, -4.0), 0.25, norm="l1").flatten().tolist() == [0.75, 0.0]


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_moves_nothing(norm):
    start = pair(0.25, 0.75).float()
    assert torch.equal(steepest(start, torch.zeros_like(start), 0.1, norm=norm), start)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_l2_step_keeps_its_length_for_gradients_whose_squares_leave_float32(scale):
    """(3, 4) times 1e-30 or 1e30: the squares are 0 or infinite in float32, the direction is (0.6, 0.8)."""
    moved = steepest(torch.zeros(1, 1, 1, 2), torch.tensor([[[[3.0, 4.0]]]]) * scale, 0.5, norm="l2")
    assert moved.flatten().tolist() == pytest.approx([0.3, 0.4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@given(seed=seeds, epsilon=st.one_of(st.just(0.0), st.floats(1e-4, 1.0)), reach=st.floats(0.01, 5))
@settings(max_examples=25)
def test_projected_points_lie_in_the_ball_and_in_the_pixel_range(norm, dtype, seed, epsilon, reach):
    x = images(seed, dtype=dtype)
    points = x + reach * torch.randn(x.shape, generator=rng(seed + 1)).to(dtype)
    projected = project(points, x, epsilon, norm=norm)
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert (length(projected.double() - x.double(), norm) <= epsilon).all()
    assert torch.allclose(project(projected, x, epsilon, norm=norm), projected, rtol=0, atol=1e-12)
    if norm == "linf":
        lower, upper = linf_box(x, epsilon)
        assert ((projected >= lower) & (projected <= upper)).all()


@pytest.mark.parametrize("norm", NORMS)
@given(seed=seeds)
@settings(max_examples=20)
def test_projection_leaves_points_of_the_ball_alone(norm, seed):
    x = torch.rand(5, 1, 4, 4, generator=rng(seed)) * 0.5 + 0.25
    inside = x + 0.99 * 0.2 * unit_noise(x.shape, norm=norm, generator=rng(seed))
    assert torch.allclose(project(inside, x, 0.2, norm=norm), inside, atol=1e-7)


def test_linf_noise_is_uniform_in_every_pixel():
    noise = unit_noise((500, 1, 4, 4), norm="linf", generator=rng()).flatten()
    assert kstest(noise.numpy(), "uniform", args=(-1, 2)).statistic < 1.95 / len(noise) ** 0.5


def test_l2_noise_is_uniform_in_the_ball():
    """The share of a d-dimensional ball within radius r is r^d, so r^d is uniform on [0, 1]."""
    noise = unit_noise((3000, 1, 2, 3), norm="l2", generator=rng()).flatten(1)
    volume = noise.double().norm(dim=1) ** 6
    assert kstest(volume.numpy(), "uniform").statistic < 1.95 / len(volume) ** 0.5
    assert noise.mean(0).abs().max() < 0.03


def test_l1_noise_is_uniform_in_the_ball():
    """The share of a d-dimensional ball within radius r is r^d in every norm."""
    noise = unit_noise((3000, 1, 2, 3), norm="l1", generator=rng()).flatten(1)
    volume = noise.double().abs().sum(1) ** 6
    assert kstest(volume.numpy(), "uniform").statistic < 1.95 / len(volume) ** 0.5
    assert noise.mean(0).abs().max() < 0.03


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_follow_the_generator_in_every_precision(norm):
    x = images(3)
    first = random_start(x, 0.1, norm=norm, generator=rng(1))
    assert torch.equal(first, random_start(x, 0.1, norm=norm, generator=rng(1)))
    assert not torch.equal(first, random_start(x, 0.1, norm=norm, generator=rng(2)))
    double = random_start(x.double(), 0.1, norm=norm, generator=rng(1))
    assert torch.allclose(first.double(), double, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", NORMS)
@given(seed=seeds, epsilon=st.floats(0, 0.5))
@settings(max_examples=10)
def test_attacks_stay_in_the_ball(norm, loss, seed, epsilon):
    x, y = images(seed), torch.tensor([0, 1, 2, 0, 1])
    adversarial = pgd(conv_network(seed), x, y, epsilon, generator=rng(seed), norm=norm, steps=5, loss=loss)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert (length(adversarial.double() - x.double(), norm) <= epsilon).all()
    assert not adversarial.requires_grad


@pytest.mark.parametrize("norm", NORMS)
def test_at_epsilon_zero_the_attack_returns_the_image(norm):
    x, y = images(0), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(pgd(conv_network(), x, y, 0.0, generator=rng(), norm=norm, steps=3), x)


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", float("inf"))])
@given(seed=seeds, epsilon=st.floats(0.001, 0.2))
@settings(max_examples=15)
def test_on_a_linear_network_the_attack_reaches_the_closed_form_minimum(norm, dual, loss, seed, epsilon):
    """min w·(x + d) + b over ‖d‖ <= eps is w·x + b - eps * (dual norm of w); no pixel comes near 0 or 1."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(2, 16, generator=rng(seed)).double())
    x = torch.rand(4, 1, 4, 4, generator=rng(seed)).double() * 0.4 + 0.3
    y = torch.tensor([0, 1, 0, 1])
    difference = (network[1].weight[y] - network[1].weight[1 - y]).detach()
    expected = margin(network(x), y).detach() - epsilon * difference.norm(p=dual, dim=1)
    adversarial = pgd(
        network, x, y, epsilon, generator=rng(seed), norm=norm, steps=40, step_size=2 * epsilon, loss=loss
    )
    assert torch.allclose(margin(network(adversarial), y), expected, atol=1e-9)


def test_the_default_step_worked_by_hand():
    """2.5 * 0.5 / 50; and from the far corner (0.1, -0.1) of the ball, 2 steps of 1.25 * 0.1 reach the near one."""
    assert default_step_size(0.5, 50) == pytest.approx(0.025)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
    adversarial = pgd(network, pair(0.5, 0.5), torch.tensor([0]), 0.1, generator=rng(), steps=2)
    assert adversarial.flatten().tolist() == pytest.approx([0.4, 0.6], abs=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_ascend_projects_its_start_and_then_climbs(norm):
    """The objective is highest at `summit`, inside the ball; the start lies far outside."""
    x, summit = torch.full((2, 1, 4, 4), 0.5), torch.full((2, 1, 4, 4), 0.51)

    def height(points):
        return -(points - summit).flatten(1).pow(2).sum(1)

    start = torch.zeros_like(x)
    unclimbed = ascend(x, start, 0.1, height, norm=norm, steps=0, step_size=0.01)
    assert (length(unclimbed - x, norm) <= 0.1 + 1e-6).all()
    climbed = ascend(x, start, 0.1, height, norm=norm, steps=30, step_size=0.01)
    assert (height(climbed) > height(unclimbed)).all()
    assert (height(climbed) > -0.002).all()


def test_an_attack_leaves_no_gradient_and_no_mode_behind():
    network, x, y = conv_network().train(), images(0), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        adversarial = pgd(network, x, y, 0.1, generator=rng(), steps=3)
    assert not torch.equal(adversarial, x)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert network.training
    assert not x.requires_grad


def test_an_unknown_loss_is_explained():
    with pytest.raises(ConfigError, match="unknown attack loss 'margins'; did you mean 'margin'"):
        pgd(conv_network(), images(0), torch.zeros(5, dtype=torch.int64), 0.1, generator=rng(), loss="margins")
