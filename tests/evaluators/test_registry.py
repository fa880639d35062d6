"""What every evaluator promises, whichever it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from hydrabench.data.images import Block
from hydrabench.evaluators import (
    EVALUATORS,
    AlphaCrownSettings,
    ApgdSettings,
    AutoAttackSettings,
    CleanSettings,
    CorruptionSettings,
    EvaluationSettings,
    ExactSettings,
    FabSettings,
    FmnSettings,
    HydraSettings,
    PgdSettings,
    Sizes,
    SmoothAttackSettings,
    SmoothingSettings,
    SquareSettings,
    VerifiedSettings,
    corruptions,
    parse_settings,
    said,
)
from hydrabench.evaluators.description import CONDITIONS

SETTINGS = {
    "clean": CleanSettings(),
    "corruptions": CorruptionSettings(),
    "pgd": PgdSettings(epsilon="0.05", steps=5),
    "hydra": HydraSettings(epsilon="0.05", steps=5),
    "apgd": ApgdSettings(epsilon="0.05", norm="l2"),
    "fab": FabSettings(epsilon="0.05"),
    "square": SquareSettings(epsilon="0.5", queries=50),
    "fmn": FmnSettings(epsilon="0.02,0.05", steps=10),
    "autoattack": AutoAttackSettings(epsilon="0.6"),
    "ibp": VerifiedSettings(kind="ibp", epsilon="0.01"),
    "symbolic": VerifiedSettings(kind="symbolic", norm="l2", epsilon="0.01"),
    "crown-ibp": VerifiedSettings(kind="crown-ibp", epsilon="0.01"),
    "crown": VerifiedSettings(kind="crown", epsilon="0.01"),
    "cascade": VerifiedSettings(kind="cascade", epsilon="0.01"),
    "alpha-crown": AlphaCrownSettings(epsilon="0.01", iterations=3),
    "exact": ExactSettings(epsilon="0.01", max_subproblems=100),
    "smoothing": SmoothingSettings(samples=200),
    "smoothed": SmoothAttackSettings(epsilon="0.5", steps=3, copies=4, draws=100),
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


def darker(image, *, corruption_name, severity, seed=None):
    """Stand in for the optional library of corruptions; noise comes from numpy's global generator, as there."""
    noise = np.random.uniform(0, 10, image.shape)  # noqa: NPY002
    return (image * (1 - severity / 10 - len(corruption_name) / 100) + noise).clip(0, 255).astype("uint8")


@pytest.fixture(autouse=True)
def _library(monkeypatch):
    monkeypatch.setattr(corruptions, "library", lambda: darker)


def test_every_evaluator_is_tested():
    assert set(EVALUATORS) == set(SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", EVALUATORS)
def test_records_come_in_order_one_per_image_and_fit_into_a_ledger(kind, dtype):
    network, block = problem(dtype)
    records = EVALUATORS[kind].evaluate(network, block, SETTINGS[kind])
    assert tuple(record.index for record in records) == block.indices
    assert tuple(record.input_sha for record in records) == block.shas
    assert [record.label for record in records] == block.labels.tolist()
    if kind not in ("smoothing", "smoothed"):
        assert [record.prediction for record in records] == network(block.images).argmax(1).tolist()
    for record in records:
        assert json.loads(json.dumps(asdict(record), allow_nan=False)) == asdict(record)
        assert record.seconds > 0


@pytest.mark.parametrize("kind", EVALUATORS)
def test_records_are_repeatable_and_nothing_is_left_behind(kind):
    network, block = problem()
    images, state = block.images.clone(), torch.get_rng_state()
    first = [replace(record, seconds=0.0) for record in EVALUATORS[kind].evaluate(network, block, SETTINGS[kind])]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = [replace(record, seconds=0.0) for record in EVALUATORS[kind].evaluate(network, block, SETTINGS[kind])]
    assert first == again
    assert torch.equal(block.images, images)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not network.training


@pytest.mark.parametrize("kind", EVALUATORS)
def test_train_mode_is_refused(kind):
    network, block = problem()
    with pytest.raises(ValueError, match="eval mode"):
        EVALUATORS[kind].evaluate(network.train(), block, SETTINGS[kind])


# What a description says ------------------------------------------------------------------------


def lines(kind):
    network, block = problem()
    return [asdict(record) for record in EVALUATORS[kind].evaluate(network, block, SETTINGS[kind])]


@pytest.mark.parametrize("kind", EVALUATORS)
def test_settings_know_their_kind_and_spell_out_in_their_protocol_id_what_is_no_condition(kind):
    settings, evaluator = SETTINGS[kind], EVALUATORS[kind]
    assert issubclass(evaluator.settings, EvaluationSettings)
    assert settings.kind == kind
    assert re.fullmatch(r"[a-z][a-z0-9_.+-]*@[1-9]", settings.protocol)
    assert parse_settings(settings.plain()) == settings
    others = {"seed": 1} if "seed" in evaluator.settings.model_fields else {}
    if others:
        assert settings.model_copy(update=others).protocol != settings.protocol


@pytest.mark.parametrize("kind", EVALUATORS)
def test_what_an_evaluator_claims_stands_in_its_records(kind):
    evaluator = EVALUATORS[kind]
    claim = {
        "upper": {"robust"},
        "lower": {"verified"},
        "smoothed": {"radius", "abstain"},
        "clean": set(),
        "smoothed-upper": {"robust"},
    }
    names = {field.name for field in fields(evaluator.record)}
    assert claim[evaluator.claims] <= names
    assert all(names <= record.keys() for record in lines(kind))
    assert evaluator.command == ("certify" if evaluator.claims in ("lower", "smoothed") else "attack")


@pytest.mark.parametrize("kind", EVALUATORS)
def test_metrics_are_one_value_for_each_image(kind):
    records, settings = lines(kind), SETTINGS[kind]
    found = EVALUATORS[kind].metrics(records, settings)
    again = EVALUATORS[kind].metrics(json.loads(json.dumps(records)), EVALUATORS[kind].read(settings.plain()))
    assert found == again, "what a ledger says is what was measured"
    assert found
    for metric in found.values():
        assert len(metric.values) == len(records)
        assert all(value >= 0 for value in metric.values)
        assert metric.interval == "t" or set(metric.values) <= {False, True}
        assert metric.column_of is None or metric.column_of in EVALUATORS


@pytest.mark.parametrize("kind", EVALUATORS)
def test_headings_meanings_and_costs_are_told(kind):
    settings, evaluator = SETTINGS[kind], EVALUATORS[kind]
    protocol = evaluator.read({name: v for name, v in settings.plain().items() if name not in CONDITIONS})
    assert said(evaluator.heading, protocol).strip()
    assert len(said(evaluator.meaning, protocol)) > 20
    assert evaluator.passes is None or evaluator.passes(settings, Sizes(1.0, 1.0, 10)) >= 1
    blocks = evaluator.blocks(settings, problem()[0], (1, 6, 6))
    assert blocks.size >= 1
    assert blocks.operations >= 0 <= blocks.search
    assert evaluator.repeatable(settings)
    assert isinstance(evaluator.notes([(evaluator.read(settings.plain()), 10)]), list)


@pytest.mark.parametrize("kind", EVALUATORS)
def test_options_are_settings_and_name_each_value_once(kind):
    evaluator = EVALUATORS[kind]
    names = [option.name for option in evaluator.options]
    assert len(set(names)) == len(names)
    for option in evaluator.options:
        assert option.help
        assert option.role != "setting" or option.needs or {
            option.setting, option.name, *(option.sets or ())
        } & set(evaluator.settings.model_fields)  # fmt: skip


def test_a_time_limit_makes_a_run_that_depends_on_the_machine():
    limited = AlphaCrownSettings(epsilon="0.01", time_limit=3.0)
    assert not EVALUATORS["alpha-crown"].repeatable(limited)


def test_descriptions_and_reports_import_no_torch():
    probe = "import sys, hydrabench.evaluators, hydrabench.reporting, hydrabench.workflows.reporting; "
    probe += "assert not {'torch', 'torchvision'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
