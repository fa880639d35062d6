"""AutoAttack: upstream's verdict, our bookkeeping, and no trace of it left behind."""

from __future__ import annotations

import logging
import random
import sys
from dataclasses import asdict, replace
from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from hydrabench.attacks import margin, upstream
from hydrabench.errors import HydrabenchError, NonFiniteError
from hydrabench.evaluators import AutoAttackSettings
from hydrabench.evaluators.autoattack import evaluate_autoattack, seed_of
from tests.helpers.autoattack_problems import (
    ENSEMBLE,
    EPSILON,
    NAMES,
    Shortened,
    as_block,
    linear_network,
    problem,
    rng,
)


@cache
def run(norm, version=2):
    """Our records, and whether everything global and every parameter is as before."""
    network, block = problem()
    before = global_state()
    settings = AutoAttackSettings(norm=norm, epsilon=EPSILON[norm], version=version)
    with mock.patch("pyautoattack.AutoAttack", Shortened):
        records = evaluate_autoattack(network, block, settings)
    untouched = all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    return records, untouched and before == global_state()


def global_state():
    numpys = np.random.get_state()[1].tolist()  # noqa: NPY002  (it is the legacy state that others share)
    return torch.get_rng_state().tolist(), numpys, random.getstate(), sys.gettrace()


@pytest.mark.parametrize("norm", NAMES)
def test_the_first_version_of_the_protocol_is_the_plain_standard_run(norm):
    """Upstream's own driver with the block's seed."""
    network, block = problem()
    records, _ = run(norm, version=1)
    settings = AutoAttackSettings(epsilon="0.1", version=1)
    assert (settings.protocol, seed_of(settings, 3)) == ("aa-standard@1", 6901138645166591744)
    with torch.random.fork_rng():
        seed = seed_of(settings, 3)
        plain = Shortened(network, norm=NAMES[norm], eps=float(EPSILON[norm]), seed=seed, version="standard")
        points, _ = plain.run_standard_evaluation(block.images, block.labels, batch_size=100)
    robust = (network(points).argmax(1) == block.labels).tolist()
    network.zero_grad(set_to_none=True)
    assert [record.robust for record in records] == robust
    assert 0 < sum(robust) < 9


@pytest.mark.parametrize(
    ("norm", "values"),
    [
        ("linf", {}),
        ("l2", {}),
        ("l1", {"attacks": ("apgd-ce", "square")}),
        ("l2", {"ensemble": "plus", "attacks": ("apgd-dlr", "fab")}),
        ("linf", {"cascade": True}),
    ],
)
def test_a_verdict_does_not_depend_on_the_images_beside_it(monkeypatch, norm, values):
    """To the last bit of the margin: alone, among some, among all, and in another order."""
    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)
    network, block = problem()
    settings = AutoAttackSettings(norm=norm, epsilon=EPSILON[norm], **values)

    def verdicts(rows):
        records = evaluate_autoattack(network, block.rows(rows), settings)
        return {record.index: (record.broken_by, record.margin) for record in records}

    whole = verdicts(range(10))
    assert len({broken_by for broken_by, _ in whole.values()}) >= 3
    assert None in {broken_by for broken_by, _ in whole.values()}
    for rows in ([7], [9, 3, 2]):
        assert verdicts(rows) == {block.indices[row]: whole[block.indices[row]] for row in rows}


@pytest.mark.parametrize("norm", NAMES)
def test_records_say_what_broke_the_image(norm):
    network, block = problem()
    records, _ = run(norm)
    assert [record.index for record in records] == list(block.indices)
    assert [record.prediction for record in records] == network(block.images).argmax(1).tolist()
    for record in records:
        assert record.robust == (record.broken_by is None) == (record.margin is None)
        assert record.broken_by in {None, "clean", *ENSEMBLE}
        assert record.step == (0 if record.broken_by == "clean" else None)
        assert record.robust or record.margin <= 0
    assert records[0].broken_by == "clean"
    assert records[0].margin == pytest.approx(margin(network(block.images), block.labels)[0].item())
    assert "apgd-ce" in {record.broken_by for record in records}


@pytest.mark.parametrize("norm", NAMES)
def test_global_state_and_parameters_are_left_as_found(norm):
    _, untouched = run(norm)
    assert untouched


def test_upstreams_warnings_are_silent_and_its_logger_is_given_back(monkeypatch, caplog, capfd):
    """It warns of every batch with a zero gradient, and a constant network has no other."""
    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)
    block = as_block(torch.full((2, 1, 6, 6), 0.5), torch.tensor([0, 0]))
    with caplog.at_level(logging.DEBUG):
        records = evaluate_autoattack(linear_network(torch.zeros(4, 36)), block, AutoAttackSettings(epsilon="0.1"))
        assert caplog.records == []
        logging.getLogger("auto-attack").warning("heard again")
        assert [record.message for record in caplog.records] == ["heard again"]
    assert [record.robust for record in records] == [True, True]
    assert capfd.readouterr() == ("", "")


def test_parameters_that_did_not_require_gradients_still_do_not():
    network = linear_network(torch.eye(4).repeat(1, 9))
    network[1].bias.requires_grad_(False)
    images = torch.full((1, 1, 6, 6), 0.5)
    evaluate_autoattack(network, as_block(images, torch.tensor([2])), AutoAttackSettings(epsilon="0.1"))
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, False]


def every_attack_is(monkeypatch, perturb):
    monkeypatch.setattr(upstream, "_choose", lambda _made, _name: perturb)


def test_a_point_outside_the_ball_is_projected_before_it_is_judged(monkeypatch):
    """The logits are the mean m and `rival`; the "attack" returns m = 0, the ball allows 0.5 - 0.1 = 0.4.

    A rival of 0.3 wins at 0 but not at 0.4; a rival of 0.45 wins there by 0.05.
    """

    def blacken(x, y):
        return torch.zeros_like(x)

    every_attack_is(monkeypatch, blacken)
    network = linear_network(torch.tensor([1 / 36, 0, 0, 0])[:, None].repeat(1, 36))
    block = as_block(torch.full((1, 1, 6, 6), 0.5), torch.tensor([0]))
    verdicts = {}
    for rival in (0.3, 0.45):
        with torch.no_grad():
            network[1].bias[1] = rival
        (verdicts[rival],) = evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.1"))
    assert (verdicts[0.3].robust, verdicts[0.3].margin) == (True, None)
    assert verdicts[0.45].broken_by == "apgd-ce"
    assert verdicts[0.45].margin == pytest.approx(-0.05, abs=1e-6)


def test_a_claim_that_a_fresh_forward_denies_does_not_count(monkeypatch):
    def unchanged(x, y):
        return x.clone()

    every_attack_is(monkeypatch, unchanged)
    network, block = problem()
    records = evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.1"))
    assert [record.broken_by for record in records] == ["clean"] + [None] * 9


def test_attacks_run_in_order_on_what_is_left(monkeypatch):
    """Each fake attack turns the first of its images black, which class 3 is the answer to."""
    network = linear_network(torch.zeros(4, 36))
    with torch.no_grad():
        network[1].weight[0] = 1.0
        network[1].bias[3] = 1.0
    sizes = []

    def blacken_the_first(x, y):
        sizes.append(len(x))
        return torch.cat([torch.zeros_like(x[:1]), x[1:]])

    every_attack_is(monkeypatch, blacken_the_first)
    block = as_block(torch.full((6, 1, 6, 6), 0.5), torch.tensor([0, 1, 0, 0, 0, 0]))
    records = evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.5"))
    assert [record.broken_by for record in records] == ["apgd-ce", "clean", "apgd-t", "fab-t", "square", None]
    assert sizes == [5, 4, 3, 2]


@pytest.mark.parametrize("norm", NAMES)
def test_at_epsilon_zero_robust_means_right(monkeypatch, norm):
    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)
    network, block = problem(classes=4)
    records = evaluate_autoattack(network, block, AutoAttackSettings(norm=norm, epsilon=0))
    assert [record.broken_by for record in records] == ["clean"] + [None] * 9


def test_a_missing_package_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    network, block = problem()
    with pytest.raises(HydrabenchError, match="not installed; run: pip install pyautoattack"):
        evaluate_autoattack(network, block, AutoAttackSettings(epsilon="0.1"))


def test_a_nan_met_during_the_attack_stops_the_run():
    class Cliff(nn.Module):
        def forward(self, x):
            highest = x.amax((1, 2, 3))
            return torch.stack([torch.where(highest > 0.55, torch.nan, highest + n) for n in range(4)], dim=1)

    images = torch.full((1, 1, 6, 6), 0.5)
    with pytest.raises(
        NonFiniteError, match="images 300 to 300, apgd-ce: a logit is NaN or infinite during AutoAttack"
    ):
        evaluate_autoattack(Cliff().eval(), as_block(images, torch.tensor([3])), AutoAttackSettings(epsilon="0.1"))


def test_both_precisions_agree():
    network, block = problem()
    double = replace(block, images=block.images.double())
    chosen = AutoAttackSettings(epsilon="0.3")
    single_records = evaluate_autoattack(network, block, chosen)
    double_records = evaluate_autoattack(network.double(), double, chosen)
    network.float()
    assert [record.broken_by for record in double_records] == [record.broken_by for record in single_records]


def test_images_in_another_memory_layout_get_the_same_records(monkeypatch):
    """Decoded colour images may lie channels last in memory, where upstream's views of the gradient fail."""
    monkeypatch.setattr("pyautoattack.AutoAttack", Shortened)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    images = torch.rand(6, 3, 6, 6, generator=rng())
    labels = network(images).argmax(1)
    settings = AutoAttackSettings(epsilon="1/255")
    records = [
        [{**asdict(record), "seconds": 0} for record in evaluate_autoattack(network, as_block(x, labels), settings)]
        for x in (images, images.contiguous(memory_format=torch.channels_last))
    ]
    assert any(record["robust"] for record in records[0])
    assert [(record["index"], record["robust"]) for record in records[0]] == [
        (record["index"], record["robust"]) for record in records[1]
    ]
