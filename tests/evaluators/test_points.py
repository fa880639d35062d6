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
from hydrabench.evaluators.replaying import ORDER_ROUNDING, replay
from hydrabench.runtime import exact_arithmetic
from hydrabench.threat import AttackNorm

RADII = {"linf": "0.04", "l2": "0.12", "l1": "0.35"}
FAST = {
    "pgd": {"steps": 8},
    "hydra": {"steps": 8},
    "fmn": {"steps": 30},
    "apgd": {"losses": ["ce"]},
    "square": {"queries": 150},
    "autoattack": {"attacks": ["apgd-ce"]},
    "exact": {"max_subproblems": 50},
    "smoothed": {"epsilon": "0.4", "sigma": 0.1, "steps": 5, "draws": 200},
}
CASES = [
    (kind, norm)
    for kind, evaluator in EVALUATORS.items()
    if evaluator.points is not None and (evaluator.claims != "lower" or kind == "exact")
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


def said(record, settings):
    """What a record says of the verdict, and whether there is an example."""
    names = ("prediction", "robust", "broken_by", "step", "verdict", "found_by")
    return record.example_within(settings.plain()) is None, [getattr(record, name, None) for name in names]


def test_every_attack_on_a_ball_is_tested():
    attacks = {kind for kind, one in EVALUATORS.items() if one.claims in ("upper", "smoothed-upper")}
    assert {kind for kind, _ in CASES} == {*attacks, "exact"}
    assert len(CASES) >= 21


@pytest.fixture(autouse=True)
def _arithmetic():
    with exact_arithmetic():
        yield


@pytest.mark.parametrize(("kind", "norm"), CASES)
def test_what_breaks_an_image_is_misclassified_and_lies_in_the_exact_ball(kind, norm):
    network, block = problem()
    settings = settings_of(kind, norm)
    records, points = EVALUATORS[kind].points(network, block, settings)
    within = [record.example_within(settings.plain()) for record in records]
    rows = [row for row, most in enumerate(within) if most is not None]
    assert 3 <= len(rows) <= len(records) - (1 if kind == "fmn" else 3)
    moved, x = points[rows], block.images[rows]
    classes = EVALUATORS[kind].classes(network, replace(block.rows(rows), images=moved), settings)
    assert all(found != label for found, label in zip(classes, block.labels[rows].tolist(), strict=True))
    most = torch.tensor([within[row] for row in rows], dtype=torch.float64)
    assert (lengths(moved.double() - x.double(), norm) <= most * (1 + (kind == "fmn") * ORDER_ROUNDING)).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    again = replay(network, block.rows(rows), moved, [within[row] for row in rows], EVALUATORS[kind], settings)
    assert [one.prediction for one in again if one.problem is None] == classes
    alone = EVALUATORS[kind].evaluate(network, block, settings)
    assert [replace(one, seconds=0.0) for one in alone] == [replace(one, seconds=0.0) for one in records]


@pytest.mark.parametrize(("kind", "norm"), CASES)
def test_a_verdict_depends_on_seed_and_image_alone(kind, norm):
    network, block = problem()
    settings = settings_of(kind, norm)
    evaluate = EVALUATORS[kind].evaluate
    together = {record.index: said(record, settings) for record in evaluate(network, block, settings)}
    order = torch.randperm(len(block.indices), generator=torch.Generator().manual_seed(1)).tolist()
    for rows in (order[:7], order[7:], [order[3]]):
        for record in evaluate(network, block.rows(rows), settings):
            assert together[record.index] == said(record, settings)
