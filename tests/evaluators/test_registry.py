"""What every evaluator promises, whichever it is."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import get_args

import pytest
import torch
from torch import nn

from hydrabench.config import (
    AlphaCrownSettings,
    AutoAttackSettings,
    CleanSettings,
    EvaluationSettings,
    PgdSettings,
    SmoothingSettings,
    VerifiedSettings,
)
from hydrabench.data.images import Block
from hydrabench.evaluators import EVALUATORS

SETTINGS = {
    "clean": CleanSettings(),
    "pgd": PgdSettings(epsilon="0.05", steps=5),
    "autoattack": AutoAttackSettings(epsilon="0.6"),
    "ibp": VerifiedSettings(kind="ibp", epsilon="0.01"),
    "symbolic": VerifiedSettings(kind="symbolic", norm="l2", epsilon="0.01"),
    "crown-ibp": VerifiedSettings(kind="crown-ibp", epsilon="0.01"),
    "crown": VerifiedSettings(kind="crown", epsilon="0.01"),
    "cascade": VerifiedSettings(kind="cascade", epsilon="0.01"),
    "alpha-crown": AlphaCrownSettings(epsilon="0.01", iterations=3),
    "smoothing": SmoothingSettings(samples=200),
}


def problem(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
        images = torch.rand(6, 1, 6, 6)
    labels = network(images).argmax(1)
    labels[2] = (labels[2] + 1) % 5
    indices = (200, 201, 202, 203, 204, 205)
    block = Block(2, indices, images.to(dtype), labels, tuple(f"sha{index}" for index in indices))
    return network.to(dtype), block


def test_every_kind_of_settings_has_an_evaluator():
    union = get_args(get_args(EvaluationSettings)[0])
    kinds = {kind for model in union for kind in get_args(model.model_fields["kind"].annotation)}
    assert set(EVALUATORS) == kinds == set(SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", EVALUATORS)
def test_records_come_in_order_one_per_image_and_fit_into_a_ledger(kind, dtype):
    network, block = problem(dtype)
    records = EVALUATORS[kind](network, block, SETTINGS[kind])
    assert tuple(record.index for record in records) == block.indices
    assert tuple(record.input_sha for record in records) == block.shas
    assert [record.label for record in records] == block.labels.tolist()
    if kind != "smoothing":
        assert [record.prediction for record in records] == network(block.images).argmax(1).tolist()
    for record in records:
        assert json.loads(json.dumps(asdict(record), allow_nan=False)) == asdict(record)
        assert record.seconds > 0


@pytest.mark.parametrize("kind", EVALUATORS)
def test_records_are_repeatable_and_nothing_is_left_behind(kind):
    network, block = problem()
    images, state = block.images.clone(), torch.get_rng_state()
    first = [replace(record, seconds=0.0) for record in EVALUATORS[kind](network, block, SETTINGS[kind])]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = [replace(record, seconds=0.0) for record in EVALUATORS[kind](network, block, SETTINGS[kind])]
    assert first == again
    assert torch.equal(block.images, images)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not network.training


@pytest.mark.parametrize("kind", EVALUATORS)
def test_train_mode_is_refused(kind):
    network, block = problem()
    with pytest.raises(ValueError, match="eval mode"):
        EVALUATORS[kind](network.train(), block, SETTINGS[kind])
