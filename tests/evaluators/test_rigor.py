"""Which verdicts rest on float32, on float64, or on nothing that rounding could move."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from hydrabench.bounds import BOUNDS, FACTORS, cascade, rounding_bound
from hydrabench.data.images import Block
from hydrabench.errors import UnsupportedLayerError
from hydrabench.evaluators import AlphaCrownSettings, VerifiedSettings, verified
from hydrabench.evaluators.verified import evaluate_verified
from hydrabench.runtime import exact_arithmetic
from tests.helpers.networks import cancelling_network

cascade_module = import_module("hydrabench.bounds.cascade")  # the package exports a function of that name


def as_block(images, labels):
    indices = tuple(range(len(labels)))
    return Block(0, indices, images, labels, tuple(f"sha{index}" for index in indices))


def cancelling(large):
    return cancelling_network(large), as_block(torch.ones(1, 1, 1, 1), torch.tensor([0]))


def problem(dtype=torch.float32, *, constant=0.0):
    """A network all of whose logits have a large `constant`, which makes rounding large and changes no margin."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
        images = torch.rand(40, 1, 6, 6)
    network[-1].bias.data += constant
    return network.to(dtype), as_block(images.to(dtype), network(images.to(dtype)).argmax(1))


@pytest.mark.parametrize("kind", FACTORS)
def test_rounding_does_not_verify_what_is_false(kind):
    """The margin is -1/2. Float32 says 1/2 with a factor of 2^25: float64 decides."""
    network, block = cancelling(2.0**25)
    (record,) = evaluate_verified(network, block, VerifiedSettings(kind=kind, epsilon="0"))
    assert (record.prediction, record.verified, record.rechecked, record.lower) == (0, False, True, -0.5)
    assert record.method is None


@pytest.mark.parametrize("kind", FACTORS)
def test_nor_does_it_cost_a_verdict_of_an_image_on_the_border(kind):
    """(2^25 p + p) - 2^25 p is 1 at p = 1, and in float32 0, which the first of two classes wins."""
    rows = [[[1.0], [1]], [[2**25, 1], [2**25, 0]], [[1, -1], [0, 0]]]
    layers = [nn.Linear(len(weight[0]), len(weight), bias=False) for weight in rows]
    for layer, weight in zip(layers, rows, strict=True):
        layer.weight.data = torch.tensor(weight, dtype=torch.float32)
    block = as_block(torch.ones(1, 1, 1, 1), torch.tensor([0]))
    (record,) = evaluate_verified(
        nn.Sequential(nn.Flatten(), *layers).eval(), block, VerifiedSettings(kind=kind, epsilon="0")
    )
    assert (record.prediction, record.verified, record.rechecked, record.lower) == (0, True, True, 1.0)


@pytest.mark.parametrize(
    "settings",
    [
        AlphaCrownSettings(epsilon="0", engine="auto_lirpa"),
        *(VerifiedSettings(kind=kind, epsilon="0", engine="auto_lirpa") for kind in ("ibp", "crown-ibp", "crown")),
    ],
    ids=lambda settings: settings.protocol,
)
def test_nor_does_rounding_in_auto_lirpa(auto_lirpa, settings):
    network, block = cancelling(2.0**25)
    (record,) = evaluate_verified(network, block, settings)
    assert (record.prediction, record.verified, record.rechecked, record.lower) == (0, False, True, -0.5)


@pytest.mark.parametrize("cascaded", [False, True])
def test_of_alpha_crown_exactly_the_proofs_within_rounding_are_made_again(cascaded):
    """A cascade gets here with images that intervals leave open; what the search leaves unproved stays so."""
    network, block = problem(constant=50.0)
    values = {"epsilon": "0.02", "iterations": 5}
    settings = AlphaCrownSettings(**values)
    if cascaded:
        settings = VerifiedSettings(kind="cascade", methods=("ibp", "alpha-crown"), **values)
    with torch.no_grad():
        reach = rounding_bound(network, block.images, block.labels, 0.02, kind="crown").tolist()
    wide = evaluate_verified(*problem(torch.float64, constant=50.0), settings)
    seen = set()
    for record, exact, limit in zip(evaluate_verified(network, block, settings), wide, reach, strict=True):
        assert (record.verified, record.method) == (exact.verified, exact.method)
        if not cascaded or record.method == "alpha-crown":
            assert record.rechecked == (0 < record.lower < limit)
            assert abs(record.lower - exact.lower) < (1e-9 if record.rechecked else limit)
            seen.add((record.verified, record.rechecked))
    assert seen >= {(True, True), (True, False)}
    assert cascaded or (False, False) in seen


@pytest.mark.parametrize(
    "settings",
    [
        AlphaCrownSettings(epsilon="0.01", iterations=5, engine="auto_lirpa"),
        VerifiedSettings(kind="crown", epsilon="0.01", engine="auto_lirpa"),
    ],
    ids=lambda settings: settings.protocol,
)
def test_where_rounding_cannot_be_estimated_float64_decides(auto_lirpa, monkeypatch, settings):
    """auto_LiRPA may know layers that our own engine refuses."""

    def refuse(*_args, **_options):
        raise UnsupportedLayerError("no rule")

    network, block = problem()
    monkeypatch.setattr(verified, "rounding_bound", refuse)
    records = evaluate_verified(network, block, settings)
    assert sum(record.verified for record in records) > 5
    assert all(record.rechecked for record in records if record.verified)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", FACTORS)
def test_rounding_does_not_verify_what_is_false_in_float64_either(kind, dtype):
    """With a factor of 2^54 float64 says 1/2, too. It is no more than its rounding, and 0 is recorded."""
    network, block = cancelling(2.0**54)
    block = as_block(block.images.to(dtype), block.labels)
    with torch.no_grad():
        assert BOUNDS[kind](network.double(), block.images.double(), block.labels, 0.0).item() == 0.5
    (record,) = evaluate_verified(network.to(dtype), block, VerifiedSettings(kind=kind, epsilon="0"))
    assert (record.prediction, record.verified, record.lower) == (0, False, 0.0)
    assert record.rechecked == (dtype == torch.float32)
    assert record.method is None


@pytest.mark.parametrize("kind", ["ibp", "crown-ibp"])
def test_sound_bounds_see_through_what_deceives_float64(kind):
    network, block = cancelling(2.0**54)
    (record,) = evaluate_verified(network, block, VerifiedSettings(kind=kind, epsilon="0", rigor="sound"))
    assert not record.verified
    assert record.lower <= -0.5


@pytest.mark.parametrize("kind", FACTORS)
def test_in_float64_rounding_costs_no_verdict_worth_the_name(kind):
    network, block = problem(torch.float64)
    settings = VerifiedSettings(kind=kind, epsilon="0.01")
    records = evaluate_verified(network, block, settings)
    with torch.no_grad():
        lower = BOUNDS[kind](network, block.images, block.labels, 0.01).tolist()
    assert [record.lower for record in records] == lower
    assert 0 < sum(record.verified for record in records) < len(records)


@pytest.mark.parametrize("kind", sorted(FACTORS.keys() - {"cascade"}))
def test_exactly_the_bounds_within_rounding_of_zero_are_computed_again(kind):
    constant = 1000 / FACTORS[kind](1)
    network, block = problem(constant=constant)
    settings = VerifiedSettings(kind=kind, epsilon="0.01")
    with torch.no_grad():
        off_by = rounding_bound(network, block.images, block.labels, 0.01, kind=kind).tolist()
    wide = evaluate_verified(*problem(torch.float64, constant=constant), settings)
    records = evaluate_verified(network, block, settings)
    assert len({record.rechecked for record in records}) == 2
    for record, exact, limit in zip(records, wide, off_by, strict=True):
        assert not exact.rechecked
        assert record.verified == exact.verified
        assert abs(record.lower - exact.lower) < (1e-12 if record.rechecked else limit)
        assert record.rechecked == (abs(record.lower) < limit) or abs(abs(record.lower) - limit) < 1e-6


@pytest.mark.parametrize("kind", sorted(FACTORS.keys() - {"cascade"}))
def test_float64_is_not_asked_about_images_that_are_misclassified(kind):
    """Rounding of a large constant leaves the bounds of all images open, and every second one has a wrong label."""
    constant = 2e5 / FACTORS[kind](1)
    network, block = problem(constant=constant)
    settings = VerifiedSettings(kind=kind, epsilon="0.01")
    labels = torch.where(torch.arange(40) % 2 == 0, block.labels, (block.labels + 1) % 5)
    with torch.no_grad():
        reach = rounding_bound(network, block.images, labels, 0.01, kind=kind).tolist()
    plain = evaluate_verified(network, block, settings)
    records = evaluate_verified(network, as_block(block.images, labels), settings)
    assert all(abs(record.lower) < limit for record, limit in zip(records, reach, strict=True))
    assert [record.rechecked for record in records] == [True, False] * 20
    for one, other in zip(records[::2], plain[::2], strict=True):
        assert (one.lower, one.verified) == (pytest.approx(other.lower, abs=1e-12), other.verified)
    assert 0 < sum(record.verified for record in records) < 20


def test_a_misclassified_image_that_float32_would_verify_is_judged_by_float64(monkeypatch):
    """Else the run would stop for a contradiction that is only rounding: float32 says 1, float64 -1."""

    def bound(network, x, y, epsilon, *, norm):
        return torch.full((len(y),), 1.0 if x.dtype == torch.float32 else -1.0, dtype=x.dtype)

    network, block = problem()
    monkeypatch.setitem(verified.BOUNDS, "ibp", bound)
    monkeypatch.setattr(verified, "rounding_bound", lambda *threat, kind: torch.full((len(threat[2]),), 2.0))
    wrong = as_block(block.images, (block.labels + 1) % 5)
    for record in evaluate_verified(network, wrong, VerifiedSettings(kind="ibp", epsilon="0.01")):
        assert (record.verified, record.rechecked, record.lower) == (False, True, -1.0)


def test_a_cascade_does_not_search_for_an_image_that_is_misclassified_by_a_hair(monkeypatch):
    """By less than a thousandth, so that one step cannot tell; the margins of both images fall to about -1/5."""
    asked = []

    def spy(network, x, y, epsilon, *, norm, search):
        asked.append(y.tolist())
        return torch.full((len(y),), -1.0)

    monkeypatch.setattr(verified, "alpha_crown_margins", spy)
    monkeypatch.setattr(cascade_module, "_margins_after_a_step", cascade_module.clean_margins)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).eval()
    network[1].weight.data = torch.tensor([[1.0, 0], [0, 1], [0, 0]])
    network[1].bias.data = torch.tensor([0.0, 0, -10])
    images = torch.tensor([0.5, 0.5001]).reshape(1, 1, 1, 2).repeat(2, 1, 1, 1)
    settings = VerifiedSettings(kind="cascade", epsilon="0.1", methods=("ibp", "alpha-crown"))
    records = evaluate_verified(network, as_block(images, torch.tensor([0, 1])), settings)
    assert [record.lower for record in records] == pytest.approx([-0.2001, -0.1999], abs=1e-5)
    assert asked == [[1]]


def test_proofs_of_a_cascade_are_doubted_as_far_as_the_methods_that_made_them_round():
    """And no verdict on an image that one step breaks: it is negative, whatever rounding did to the bound."""
    network, block = problem(constant=250.0)
    settings = VerifiedSettings(kind="cascade", epsilon="0.01")
    threat = (network, block.images, block.labels, 0.01)
    with torch.no_grad():
        reach = {kind: rounding_bound(*threat, kind=kind).tolist() for kind in ("ibp", "crown-ibp", "crown")}
        refuted = cascade(*threat).refuted.tolist()
    wide = evaluate_verified(*problem(torch.float64, constant=250.0), settings)
    seen = set()
    for row, (record, exact) in enumerate(zip(evaluate_verified(network, block, settings), wide, strict=True)):
        asked = record.method or "crown"
        assert record.rechecked == (abs(record.lower) < reach[asked][row] and not refuted[row])
        assert (record.verified, record.method) == (exact.verified, exact.method)
        assert abs(record.lower - exact.lower) < (1e-12 if record.rechecked else reach[asked][row])
        spared = abs(record.lower) < reach["crown"][row] and not record.rechecked
        seen.add((asked, "refuted" if spared and refuted[row] else "spared" if spared else record.rechecked))
    by_ibp = {("ibp", "spared"), ("ibp", True), ("ibp", False)}
    assert seen == by_ibp | {("crown-ibp", True), ("crown", True), ("crown", "refuted")}


def test_a_cascade_names_the_method_that_float64_proves_an_image_by():
    """And at most what is within the rounding of symbolic intervals is computed again."""
    network, block = problem(constant=1e4)
    settings = VerifiedSettings(kind="cascade", epsilon="0.01", methods=("symbolic",))
    records = evaluate_verified(network, block, settings)
    assert {record.method for record in records if record.rechecked and record.verified} == {"symbolic"}


def test_sound_bounds_lie_just_below_the_others():
    network, block = problem()
    for kind in ("ibp", "crown-ibp"):
        sound = evaluate_verified(network, block, VerifiedSettings(kind=kind, epsilon="0.01", rigor="sound"))
        plain = evaluate_verified(*problem(torch.float64), VerifiedSettings(kind=kind, epsilon="0.01"))
        for one, other in zip(sound, plain, strict=True):
            assert other.lower - 1e-9 < one.lower <= other.lower


def test_deployed_bounds_are_those_of_the_precision_of_the_run():
    """Float32 loses about 1e-5 of a margin, float64 next to nothing."""
    settings = VerifiedSettings(kind="crown-ibp", epsilon="0.01", rigor="deployed")
    sound = evaluate_verified(*problem(), settings.model_copy(update={"rigor": "sound"}))
    for dtype, least, most in ((torch.float32, 1e-7, 1e-3), (torch.float64, 0, 1e-9)):
        for one, other in zip(evaluate_verified(*problem(dtype), settings), sound, strict=True):
            assert least < other.lower - one.lower < most


def test_bounds_are_refused_where_products_are_rounded_to_less():
    network, block = problem()
    settings, before = VerifiedSettings(kind="ibp", epsilon="0.01"), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ValueError, match=r"float32_matmul_precision is 'high', not 'highest'; .*exact_arithmetic"):
            evaluate_verified(network, block, settings)
        with exact_arithmetic():
            assert evaluate_verified(network, block, settings)
    finally:
        torch.set_float32_matmul_precision(before)
