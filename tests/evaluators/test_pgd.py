"""PGD verdicts: exact on linear networks, and nobody's business but the image's own."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.attacks import LOSSES, ExactBall, Moves, margin, search
from hydrabench.data.images import Block
from hydrabench.errors import ConfigError, NonFiniteError
from hydrabench.evaluators import EVALUATORS, PgdSettings
from hydrabench.evaluators.pgd import evaluate_pgd
from hydrabench.threat import linf_box

seeds = st.integers(0, 2**31)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def as_block(images, labels, first=0):
    indices = tuple(range(first, first + len(labels)))
    return Block(0, indices, images, labels, tuple(f"sha{index}" for index in indices))


def pick(block, rows):
    chosen = torch.tensor(rows)
    names = tuple(block.indices[row] for row in rows), tuple(block.shas[row] for row in rows)
    return Block(0, names[0], block.images[chosen], block.labels[chosen], names[1])


def conv_problem(seed=0, count=24, dtype=torch.float64):
    """A small random network and images, of which it gets all but the first right."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)).eval()
        images = torch.rand(count, 1, 4, 4)
    network, images = network.to(dtype), images.to(dtype)
    labels = network(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    return network, as_block(images, labels, first=100)


def mixed_settings(**changes):
    """A radius at which some images of `conv_problem` break at once, some late, some never."""
    return PgdSettings(**{"epsilon": "0.06", "steps": 10, **changes})


def verdicts(records):
    return {record.index: replace(record, seconds=0.0, margin=None) for record in records}


class Watched(nn.Module):
    """Keeps every batch it is shown."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.seen = []
        self.eval()

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.network(x)


def linear_problem(seed, classes=2):
    """A linear network and images that stay 0.3 away from 0 and 1."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).double().eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(classes, 16, generator=rng(seed)).double())
        network[1].bias.zero_()
    images = torch.rand(12, 1, 4, 4, generator=rng(seed + 1)).double() * 0.4 + 0.3
    return network, as_block(images, network(images).argmax(1))


def test_mixed_differentiates_in_bfloat16_and_judges_in_full_precision():
    """Every image that it calls broken is misclassified by a fresh pass; at other points than in full precision."""
    network, block = conv_problem(dtype=torch.float32)
    network.requires_grad_(False)
    seen = []
    network[0].register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
    settings = mixed_settings(mixed=True, norm="l2", epsilon="0.15")
    records, points = EVALUATORS["pgd"].points(network, block, settings)
    assert {torch.float32, torch.bfloat16} == set(seen)
    wrong = network(points).argmax(1) != block.labels
    assert [not record.robust for record in records] == wrong.tolist()
    assert {record.broken_by for record in records} > {None, "clean"}
    plain = evaluate_pgd(network, block, settings.model_copy(update={"mixed": False}))
    assert [one.margin for one in plain] != [one.margin for one in records]
    assert settings.protocol == "pgd-10-mixed@2"


@pytest.mark.parametrize("loss", ["ce", "margin"])
@given(seed=seeds)
@hypothesis_settings(max_examples=15)
def test_a_linear_network_is_broken_exactly_where_the_closed_form_says(loss, seed):
    """The margin over the ball falls to w·x + b - eps * ‖w‖_1, w being the difference of the two rows."""
    network, block = linear_problem(seed)
    difference = (network[1].weight[0] - network[1].weight[1]).detach()
    reach = (margin(network(block.images), block.labels) / difference.abs().sum()).tolist()
    epsilon = Fraction(sum(sorted(reach)[5:7]) / 2)  # half-way between two images
    assume(0 < epsilon < 0.29 and min(abs(radius - epsilon) for radius in reach) > 1e-9)
    records = evaluate_pgd(network, block, PgdSettings(epsilon=epsilon, losses=(loss,), steps=20))
    assert [record.robust for record in records] == [radius > epsilon for radius in reach]
    for record, radius in zip(records, reach, strict=True):
        assert record.broken_by == (None if record.robust else f"pgd-{loss}")
        if record.robust:
            lowest = (radius - float(epsilon)) * difference.abs().sum().item()
            assert record.margin == pytest.approx(lowest, rel=1e-6, abs=1e-9)
        else:
            assert record.margin <= 0


def test_the_step_is_the_number_of_gradient_steps_done():
    """One pixel at 0.5, classes (x, 0.5 - 0.9 * eps): the margin is 0.9 eps + (x - 0.5).

    The start u lies in [-eps, eps]; each of 10 steps moves a quarter of eps down, so the image breaks
    after the first k with u - k * eps / 4 < -0.9 eps, the point -eps being reached at the latest.
    """
    epsilon = 0.125
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double().eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
        network[1].bias.copy_(torch.tensor([0.0, 0.5 - 0.9 * epsilon]))
    watched = Watched(network)
    steps = set()
    for index in range(30):
        watched.seen.clear()
        block = as_block(torch.full((1, 1, 1, 1), 0.5).double(), torch.tensor([0]), first=index)
        (record,) = evaluate_pgd(watched, block, PgdSettings(epsilon=epsilon, steps=10))
        start = watched.seen[1].item() - 0.5
        expected = next(k for k in range(11) if max(start - k * epsilon / 4, -epsilon) < -0.9 * epsilon)
        assert (record.broken_by, record.step) == ("pgd-ce", expected)
        steps.add(expected)
    assert {0, 1, 2, 4, 7} <= steps


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_verdict_ignores_the_rest_of_the_batch(norm):
    network, block = conv_problem()
    chosen = mixed_settings(norm=norm, epsilon={"linf": "0.06", "l2": "0.15", "l1": "0.4"}[norm], restarts=2)
    together = verdicts(evaluate_pgd(network, block, chosen))
    order = torch.randperm(len(block.indices), generator=rng(1)).tolist()
    shuffled = evaluate_pgd(network, pick(block, order), chosen)
    alone = [record for row in order for record in evaluate_pgd(network, pick(block, [row]), chosen)]
    assert [record.index for record in shuffled] == [block.indices[row] for row in order]
    assert verdicts(shuffled) == together
    assert verdicts(alone) == together
    lowest = {record.index: record.margin for record in shuffled}
    assert lowest == pytest.approx({record.index: record.margin for record in alone}, abs=1e-9)
    assert len({record.step for record in together.values()}) > 3, "the block holds too little variety"
    assert {record.broken_by for record in together.values()} >= {"clean", "pgd-ce", None}


def test_broken_images_leave_the_batch():
    """An image is forwarded once clean, `step` + 1 times under the loss that breaks it, 11 times under others."""
    network, block = conv_problem()
    watched = Watched(network)
    records = evaluate_pgd(watched, block, mixed_settings())
    forwards = {None: 22, "clean": 0}
    expected = sum(1 + forwards.get(record.broken_by, 0) for record in records)
    expected += sum(record.step + 1 for record in records if record.broken_by == "pgd-ce")
    expected += sum(11 + record.step + 1 for record in records if record.broken_by == "pgd-margin")
    assert sum(map(len, watched.seen)) == expected
    assert any(record.robust for record in records)
    assert sum(not record.robust for record in records) > 3


def test_every_forwarded_point_lies_in_the_certified_box_and_the_smallest_margin_is_kept():
    network, block = conv_problem(dtype=torch.float32)
    lower, upper = linf_box(block.images, float(Fraction("0.06")))
    broken = 0
    for row in range(len(block.indices)):
        watched, alone = Watched(network), pick(block, [row])
        (record,) = evaluate_pgd(watched, alone, mixed_settings())
        points = torch.cat(watched.seen)
        assert ((points >= lower[row]) & (points <= upper[row])).all()
        margins = margin(network(points), alone.labels.expand(len(points)))
        assert record.margin == pytest.approx(margins.min().item(), abs=1e-6)
        wrong = network(points).argmax(1) != alone.labels
        assert wrong.any() == (not record.robust)
        assert not wrong[:-1].any(), "the attack went on after it had succeeded"
        broken += not record.robust
    assert 0 < broken < len(block.indices)


def test_at_epsilon_zero_robust_means_right():
    network, block = conv_problem()
    block = replace(block, labels=torch.arange(24) % 5)
    records = evaluate_pgd(network, block, PgdSettings(epsilon=0, steps=3))
    right = (network(block.images).argmax(1) == block.labels).tolist()
    assert 0 < sum(right) < 24
    assert [record.robust for record in records] == right
    assert {record.broken_by for record in records} == {None, "clean"}


def test_the_same_seed_gives_the_same_records_and_another_one_other_starts():
    network, block = conv_problem()

    def run(seed):
        watched = Watched(network)
        records = evaluate_pgd(watched, block, mixed_settings(seed=seed))
        return [replace(record, seconds=0.0) for record in records], watched.seen[1]

    (first, first_starts), (again, same_starts), (_, other_starts) = run(0), run(0), run(1)
    assert first == again
    assert torch.equal(first_starts, same_starts)
    assert not (first_starts == other_starts).flatten(1).all(1).any()


def test_restarts_and_losses_draw_starts_of_their_own():
    network, block = conv_problem()
    watched, one = Watched(network), pick(block, [1])
    evaluate_pgd(watched, one, PgdSettings(epsilon="0.001", steps=4, restarts=3))
    starts = torch.cat(watched.seen[1::5])
    assert len(starts) == 6
    assert len(torch.unique(starts.flatten(1), dim=0)) == 6


def test_more_restarts_never_make_an_image_robust():
    network, block = conv_problem(seed=3)
    epsilon = "0.035"
    few = evaluate_pgd(network, block, PgdSettings(epsilon=epsilon, steps=2, losses=("ce",)))
    many = evaluate_pgd(network, block, PgdSettings(epsilon=epsilon, steps=2, losses=("ce",), restarts=8))
    assert all(one.robust or not other.robust for one, other in zip(few, many, strict=True))
    assert all(one.margin >= other.margin for one, other in zip(few, many, strict=True) if one.robust)
    assert any(record.robust for record in few)


@pytest.mark.parametrize("changes", [{"targets": 9}, {"momentum": 0.75}, {"step_size": "0.002"}], ids=str)
def test_every_setting_changes_the_search_and_its_protocol(changes):
    network, block = conv_problem()
    plain, changed = (
        mixed_settings(losses=("ce",), epsilon="0.04"),
        mixed_settings(losses=("ce",), epsilon="0.04", **changes),
    )
    assert changed.protocol != plain.protocol
    found = [evaluate_pgd(network, block, settings) for settings in (plain, changed)]
    steps = [[(record.robust, record.step, record.margin) for record in records] for records in found]
    assert steps[0] != steps[1]
    assert sum(record.robust for record in found[1]) < len(found[1])


def test_a_targeted_search_tries_the_likeliest_classes_in_turn():
    """Four other classes: at a tiny radius each of them is searched for, with the clean pass before and ranking."""
    network, block = conv_problem()
    watched = Watched(network)
    evaluate_pgd(watched, pick(block, [1]), PgdSettings(epsilon="0.0001", steps=3, losses=("margin",), targets=9))
    assert len(watched.seen) == 1 + 1 + 4 * 4
    starts = torch.cat(watched.seen[2::4])
    assert len(torch.unique(starts.flatten(1), dim=0)) == 4


def test_momentum_worked_by_hand():
    """Gradients (1, 0) and (0, 1) of mean size 1/2 count (2, 0) and (0, 2): with momentum 1/2 the second is (1, 2)."""

    class Turning(nn.Module):
        """The margin falls with the first pixel a up to 0.55, then with the second, b."""

        def forward(self, x):
            a, b = x.flatten(1).T
            margins = torch.where(a < 0.55, 2 - a, 2 - b)
            return torch.stack([margins, margins * 0], dim=1)

    x = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    seen = []
    for momentum in (0.0, 0.5):
        watched = Watched(Turning())
        ball = ExactBall.around(x, 0.3, "l2")
        how = Moves(2, 0.1, momentum)
        search(watched, ball, x.clone(), (torch.tensor([0]),), LOSSES["margin"], how=how, check=lambda *_: None)
        seen.append(watched.seen[2].flatten().tolist())
    assert seen[0] == pytest.approx([0.6, 0.6])
    assert seen[1] == pytest.approx([0.6 + 0.1 / 5**0.5, 0.5 + 0.2 / 5**0.5])


def test_a_loss_that_compares_more_logits_than_there_are_is_refused():
    network, block = linear_problem(0)
    with pytest.raises(ConfigError, match="dlr compares 3 logits, the network has 2; give --loss margin"):
        EVALUATORS["pgd"].suits(network, block, PgdSettings(epsilon="0.1", losses=("dlr",)))


def test_no_parameter_gets_a_gradient_even_under_no_grad():
    network, block = conv_problem()
    with torch.no_grad():
        records = evaluate_pgd(network, block, mixed_settings())
    assert any(record.step for record in records)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert block.images.grad is None
    assert not block.images.requires_grad


def test_a_nan_met_during_the_attack_names_the_image():
    class Cliff(nn.Module):
        """Fine where no pixel exceeds 0.9, NaN beyond."""

        def forward(self, x):
            highest = x.amax((1, 2, 3))
            return torch.stack([torch.where(highest > 0.9, torch.nan, highest + 1), highest * 0], dim=1)

    images = torch.tensor([0.2, 0.88]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2).clone()
    block = as_block(images, torch.tensor([0, 0]), first=70)
    with pytest.raises(NonFiniteError, match=r"image 71: a logit after \d+ steps of PGD is NaN"):
        evaluate_pgd(Cliff().eval(), block, PgdSettings(epsilon="0.1"))
