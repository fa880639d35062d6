"""Every attack on a ball, in every norm that it takes: where its points lie, and what a verdict depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from hydrabench.attacks import lengths
from hydrabench.data.images import Block
from hydrabench.evaluators import EVALUATORS, parse_settings
from hydrabench.threat import AttackNorm

RADII = {"linf": "0.04", "l2": "0.12", "l1": "0.35"}
FAST = {
    "pgd": {"steps": 8},
    "hydra": {"steps": 8},
    "fmn": {"steps": 30},
    "apgd": {"losses": ["ce"]},
    "square": {"queries": 150},
}
CASES = [
    (kind, norm)
    for kind, evaluator in EVALUATORS.items()
    if evaluator.points is not None
    for norm in get_args(AttackNorm)
    if norm in get_args(evaluator.settings.model_fields["norm"].annotation)
]


def problem(count=20):
    """Images of 6 x 6 pixels, some at the ends of the pixel range; all but the first are classified right."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)).eval()
        images = (torch.rand(count, 1, 6, 6) * 1.2 - 0.1).clamp(0, 1)
    labels = network(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    return network, Block(0, tuple(range(50, 50 + count)), images, labels, ("0" * 64,) * count)


def settings_of(kind, norm):
    return parse_settings({"kind": kind, "norm": norm, "epsilon": RADII[norm], **FAST.get(kind, {})})


def test_every_attack_on_a_ball_is_tested():
    assert {kind for kind, _ in CASES} >= {"pgd", "hydra", "apgd", "fab", "square", "fmn"}
    assert len(CASES) >= 16


@pytest.mark.parametrize(("kind", "norm"), CASES)
def test_what_breaks_an_image_is_misclassified_and_lies_in_the_exact_ball(kind, norm):
    network, block = problem()
    settings = settings_of(kind, norm)
    records, points = EVALUATORS[kind].points(network, block, settings)
    broken = torch.tensor([not record.robust and record.broken_by != "clean" for record in records])
    assert broken.sum() >= 3
    assert (~broken).sum() >= 3
    moved, x = points[broken], block.images[broken]
    assert (network(moved).argmax(1) != block.labels[broken]).all()
    assert (lengths(moved.double() - x.double(), norm) <= float(settings.epsilon)).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    alone = EVALUATORS[kind].evaluate(network, block, settings)
    assert [replace(one, seconds=0.0) for one in alone] == [replace(one, seconds=0.0) for one in records]


@pytest.mark.parametrize(("kind", "norm"), CASES)
def test_a_verdict_depends_on_seed_and_image_alone(kind, norm):
    network, block = problem()
    settings = settings_of(kind, norm)
    evaluate = EVALUATORS[kind].evaluate
    together = {
        record.index: (record.robust, record.broken_by, record.step) for record in evaluate(network, block, settings)
    }
    order = torch.randperm(len(block.indices), generator=torch.Generator().manual_seed(1)).tolist()
    for rows in (order[:7], order[7:], [order[3]]):
        for record in evaluate(network, block.rows(rows), settings):
            assert together[record.index] == (record.robust, record.broken_by, record.step)
