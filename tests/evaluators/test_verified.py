"""What counts as verified, and that no attack breaks it."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from hydrabench.bounds import BOUNDS, Search, lirpa
from hydrabench.data.images import Block
from hydrabench.errors import GateError
from hydrabench.evaluators import EVALUATORS, AlphaCrownSettings, PgdSettings, VerifiedSettings, verified
from hydrabench.evaluators.pgd import evaluate_pgd
from hydrabench.evaluators.verified import evaluate_verified

cascade = import_module("hydrabench.bounds.cascade")  # the package exports a function of that name
SEEDS = st.integers(0, 2**31)


def as_block(images, labels, first=0):
    indices = tuple(range(first, first + len(labels)))
    return Block(0, indices, images, labels, tuple(f"sha{index}" for index in indices))


def difference_network():
    """Two pixels a and b; the logits are (a, b)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(2))
        network[1].bias.zero_()
    return network


def trained_problem(seed, classes=4):
    """A small network trained for a moment on noisy copies of four random pictures, and fresh copies."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(classes, 1, 6, 6, generator=generator) * 0.6 + 0.2

    def sample(count):
        labels = torch.randint(classes, (count,), generator=generator)
        noise = torch.randn(count, 1, 6, 6, generator=generator)
        return (prototypes[labels] + 0.15 * noise).clamp(0, 1), labels

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, classes)
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(40):
        images, labels = sample(32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval(), as_block(*sample(20))


def always(lower):
    """A bound that says `lower` whatever it is asked."""

    def bound(network, x, y, epsilon, *, norm):
        return lower

    return bound


@pytest.mark.parametrize("kind", BOUNDS)
def test_verdicts_of_a_linear_network_worked_by_hand(kind):
    """Margin a - b of (0.75, 0.25) is 0.5 and falls to 0.5 - 2 * eps: 0.25 at 1/8, 0 at 1/4. Class 1 is wrong."""
    block = as_block(torch.tensor([0.75, 0.25]).reshape(1, 1, 1, 2).repeat(2, 1, 1, 1), torch.tensor([0, 1]), first=5)
    right, wrong = evaluate_verified(difference_network(), block, VerifiedSettings(kind=kind, epsilon="1/8"))
    assert (right.index, right.input_sha, right.label, right.prediction) == (5, "sha5", 0, 0)
    assert right.verified
    assert right.lower == pytest.approx(0.25, abs=1e-6)
    assert (wrong.index, wrong.prediction, wrong.verified) == (6, 0, False)
    assert wrong.lower == pytest.approx(-0.75, abs=1e-6)
    at_the_edge, _ = evaluate_verified(difference_network(), block, VerifiedSettings(kind=kind, epsilon="0.251"))
    assert not at_the_edge.verified


def test_a_bound_of_exactly_zero_is_no_certificate(monkeypatch):
    monkeypatch.setitem(verified.BOUNDS, "ibp", always(torch.zeros(1)))
    block = as_block(torch.tensor([0.75, 0.25]).reshape(1, 1, 1, 2), torch.tensor([0]))
    (record,) = evaluate_verified(difference_network(), block, VerifiedSettings(kind="ibp", epsilon="1/8"))
    assert (record.verified, record.lower) == (False, 0.0)


def test_a_bound_that_rounding_lifts_above_zero_does_not_verify_a_misclassified_image(monkeypatch):
    monkeypatch.setitem(verified.BOUNDS, "ibp", lambda network, x, y, epsilon, *, norm: torch.full((len(y),), 1e-5))
    block = as_block(torch.tensor([0.75, 0.25]).reshape(1, 1, 1, 2), torch.tensor([1]))
    (record,) = evaluate_verified(difference_network(), block, VerifiedSettings(kind="ibp", epsilon="1/8"))
    assert (record.verified, record.lower) == (False, pytest.approx(1e-5))


def test_a_bound_that_contradicts_the_networks_own_prediction_stops_the_run(monkeypatch):
    monkeypatch.setitem(verified.BOUNDS, "ibp", lambda network, x, y, epsilon, *, norm: torch.ones(len(y)))
    block = as_block(torch.tensor([0.75, 0.25]).reshape(1, 1, 1, 2), torch.tensor([1]), first=3)
    with pytest.raises(GateError, match="image 3: the ibp bound says that the margin is at least 1, but the network"):
        evaluate_verified(difference_network(), block, VerifiedSettings(kind="ibp", epsilon="1/8"))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_vacuous_bound_verifies_nothing_and_is_recorded_as_such(monkeypatch, bad):
    monkeypatch.setitem(verified.BOUNDS, "ibp", always(torch.tensor([1.0, bad])))
    block = as_block(torch.tensor([0.75, 0.25]).expand(2, 1, 1, 2), torch.tensor([0, 0]), first=5)
    found = evaluate_verified(difference_network(), block, VerifiedSettings(kind="ibp", epsilon="1/8"))
    assert [record.verified for record in found] == [True, False]
    assert [record.lower for record in found] == [1.0, verified.VACUOUS]
    assert json.loads(json.dumps(asdict(found[1]), allow_nan=False))["lower"] < -1e300


def test_intervals_of_a_network_that_is_too_deep_for_them_are_vacuous():
    """In float32 the widths behind forty layers of weights of 10 overflow; the logits themselves are small."""
    layers = [layer for _ in range(40) for layer in (nn.Linear(4, 4, bias=False), nn.ReLU())]
    network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(4, 2)).eval().requires_grad_(False)
    for layer in layers[::2]:
        layer.weight.copy_(10 * torch.tensor([[1.0, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]]))
    block = as_block(torch.full((1, 1, 2, 2), 0.5), network(torch.full((1, 1, 2, 2), 0.5)).argmax(1))
    (record,) = evaluate_verified(network, block, VerifiedSettings(kind="ibp", epsilon="1/8"))
    assert (record.verified, record.lower) == (False, verified.VACUOUS)


@pytest.mark.parametrize(("norm", "scale"), [("linf", 1), ("l2", 4)])
@pytest.mark.parametrize("kind", BOUNDS)
@given(seed=SEEDS, radius=st.sampled_from([0.005, 0.01, 0.02, 0.04]))
@hypothesis_settings(max_examples=6)
def test_no_attack_beats_a_certificate(kind, norm, scale, seed, radius):
    network, block = trained_problem(seed)
    threat = {"norm": norm, "epsilon": str(scale * radius)}
    certified = evaluate_verified(network, block, VerifiedSettings(kind=kind, **threat))
    assume(any(record.verified for record in certified))
    attacked = evaluate_pgd(network, block, PgdSettings(**threat, steps=20, restarts=2))
    for certificate, attack in zip(certified, attacked, strict=True):
        assert attack.robust or not certificate.verified
        assert attack.margin >= certificate.lower - 1e-4


@pytest.mark.parametrize("kind", BOUNDS)
def test_every_bound_is_an_evaluator(kind):
    assert EVALUATORS[kind].claims == "lower"
    assert EVALUATORS[kind].heading


@pytest.mark.parametrize("kind", BOUNDS)
def test_no_graph_is_built(kind):
    network, block = trained_problem(0)
    for parameter in network.parameters():
        parameter.grad = None
    evaluate_verified(network, block, VerifiedSettings(kind=kind, epsilon="0.01"))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_cascade_records_which_method_proved_each_image():
    network, block = trained_problem(1)
    found = set()
    for epsilon in ("0.02", "0.06", "0.12"):
        records = evaluate_verified(network, block, VerifiedSettings(kind="cascade", epsilon=epsilon))
        assert all((record.method is not None) == record.verified for record in records)
        found |= {record.method for record in records}
        only = VerifiedSettings(kind="cascade", epsilon=epsilon, methods=("crown",))
        assert {record.method for record in evaluate_verified(network, block, only)} <= {"crown", None}
        single = evaluate_verified(network, block, VerifiedSettings(kind="crown", epsilon=epsilon))
        assert {record.method for record in single} == {None}
        for one, union in zip(single, records, strict=True):
            assert union.verified or not one.verified
    assert found >= {"ibp", "crown-ibp", None}


# auto_LiRPA ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ibp", "crown-ibp"])
def test_the_other_engine_gives_its_own_bounds_which_are_ours_but_for_rounding(auto_lirpa, kind, monkeypatch):
    network, block = trained_problem(0)
    asked = []  # the bounds alone need not tell, since even their rounding may be the same

    def lirpa_margins(*args, method):
        asked.append(method)
        return lirpa.lirpa_margins(*args, method=method)

    monkeypatch.setattr(verified, "lirpa_margins", lirpa_margins)
    theirs = evaluate_verified(network, block, VerifiedSettings(kind=kind, epsilon="0.02", engine="auto_lirpa"))
    expected = lirpa.lirpa_margins(network, block.images, block.labels, 0.02, method=kind)
    assert [record.lower for record in theirs] == expected.tolist()
    assert asked == [kind]
    ours = evaluate_verified(network, block, VerifiedSettings(kind=kind, epsilon="0.02"))
    assert [record.lower for record in ours] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    assert asked == [kind]


def test_alpha_crown_takes_every_setting(monkeypatch):
    asked = []

    def spy(network, x, y, epsilon, *, search, norm="linf"):
        asked.append((epsilon, norm, search))
        return torch.full((len(y),), -1.0)

    monkeypatch.setattr(verified, "alpha_crown_margins", spy)
    network, block = trained_problem(0)
    evaluate_verified(network, block, AlphaCrownSettings(epsilon="0.1"))
    values = {"slopes": "all", "iterations": 4, "learning_rate": 0.3, "time_limit": 2.5}
    evaluate_verified(network, block, AlphaCrownSettings(epsilon="0.2", norm="l2", **values))
    assert asked == [(0.1, "linf", Search()), (0.2, "l2", Search(**values))]
    monkeypatch.setattr(verified, "lirpa_alpha_margins", spy)
    evaluate_verified(network, block, AlphaCrownSettings(epsilon="0.3", engine="auto_lirpa", **values))
    assert asked[2:] == [(0.3, "linf", Search(**values))]


def test_a_cascade_searches_for_what_is_still_open_and_may_be_true(monkeypatch):
    """Six images have margins 0.5, -0.5, 0.1, 0.3, 0.3, 0.3, which fall by 0.2 at epsilon 0.1.

    Told that intervals give 1 for the first and -1 for the others, a cascade is left with the last three: the second
    is misclassified, the third is -0.1 after one step. Of them the search proves the first and gives the second a
    better bound and the third none.
    """
    asked = []

    def spy(network, x, y, epsilon, *, norm, search):
        asked.append((x, y, epsilon, search))
        return torch.tensor([0.1, -0.5, -2.0])

    monkeypatch.setattr(verified, "alpha_crown_margins", spy)
    monkeypatch.setattr(verified, "rounding_bound", lambda *threat, kind: torch.full((len(threat[2]),), 1e-6))
    told = torch.tensor([[1.0], *[[-1.0]] * 5])
    monkeypatch.setitem(cascade.STEPS, "ibp", lambda problem: told)
    a = torch.tensor([0.75, 0.25, 0.55, 0.65, 0.65, 0.65])
    block = as_block(torch.stack([a, 1 - a], 1).view(6, 1, 1, 2), torch.zeros(6, dtype=torch.long))
    values = {"slopes": "all", "iterations": 4, "learning_rate": 0.3, "time_limit": 2.5}
    settings = VerifiedSettings(kind="cascade", epsilon="0.1", methods=("ibp", "alpha-crown"), **values)
    records = evaluate_verified(difference_network(), block, settings)
    ((x, y, epsilon, search),) = asked
    assert (x[:, 0, 0, 0].tolist(), y.tolist()) == (a[3:].tolist(), [0, 0, 0])
    assert (epsilon, search) == (0.1, Search(**values))
    assert [record.method for record in records] == ["ibp", None, None, "alpha-crown", None, None]
    assert [record.verified for record in records] == [True, False, False, True, False, False]
    assert [record.lower for record in records] == pytest.approx([1, -1, -1, 0.1, -0.5, -1])
    evaluate_verified(difference_network(), block, settings.model_copy(update={"methods": ("ibp",)}))
    assert len(asked) == 1


def test_a_search_that_gives_nan_leaves_the_earlier_bound(monkeypatch):
    monkeypatch.setattr(verified, "alpha_crown_margins", lambda *threat, norm, search: torch.tensor([torch.nan]))
    monkeypatch.setitem(cascade.STEPS, "ibp", lambda problem: torch.tensor([[-1.0]]))
    block = as_block(torch.tensor([0.75, 0.25]).reshape(1, 1, 1, 2), torch.tensor([0]))
    settings = VerifiedSettings(kind="cascade", epsilon="0.1", methods=("ibp", "alpha-crown"))
    (record,) = evaluate_verified(difference_network(), block, settings)
    assert (record.verified, record.lower) == (False, -1.0)


def test_no_attack_beats_alpha_crown():
    network, block = trained_problem(3)
    crown_ibp = evaluate_verified(network, block, VerifiedSettings(kind="crown-ibp", epsilon="0.04"))
    certified = evaluate_verified(network, block, AlphaCrownSettings(epsilon="0.04", iterations=20))
    assert sum(record.verified for record in certified) >= sum(record.verified for record in crown_ibp) > 0
    attacked = evaluate_pgd(network, block, PgdSettings(epsilon="0.04", steps=20, restarts=2))
    for certificate, attack in zip(certified, attacked, strict=True):
        assert attack.robust or not certificate.verified
        assert attack.margin >= certificate.lower - 1e-4


def test_alpha_crown_of_both_engines_proves_the_same(auto_lirpa):
    network, block = trained_problem(3)
    ours, theirs = (
        evaluate_verified(network, block, AlphaCrownSettings(epsilon="0.04", iterations=20, engine=engine))
        for engine in ("hydrabench", "auto_lirpa")
    )
    assert [record.verified for record in ours] == [record.verified for record in theirs]
    assert [record.lower for record in ours if not record.verified] == pytest.approx(
        [record.lower for record in theirs if not record.verified], abs=1e-3
    )
