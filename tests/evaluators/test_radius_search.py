"""Robust radii by bisection: between what is proved and what is broken, never above the one or below the other."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from fractions import Fraction

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from hydrabench.checkpoints import open_ref
from hydrabench.cli import main
from hydrabench.data import load_block, load_images
from hydrabench.data.images import Block
from hydrabench.errors import ConfigError, GateError
from hydrabench.evaluators import EVALUATORS, parse_settings, radius_search, record_of
from hydrabench.ledger import RadiusRecord
from hydrabench.threat import float_below

KINDS = ("ibp", "symbolic", "crown-ibp", "crown", "cascade", "alpha-crown", "exact")


@pytest.fixture(autouse=True)
def _short_attacks(monkeypatch):
    monkeypatch.setattr(radius_search, "STEPS", 5)


def wanted(kind, epsilon="8/16", **more):
    return parse_settings({"kind": kind, "epsilon": epsilon, "search_radius": True, **more})


def search(kind, network, block, **more):
    settings = wanted(kind, **more)
    return settings, *EVALUATORS[kind].points(network, block, settings)


def two_pixels():
    """Logits (a, b) of images with pixels a and b: robust radii (a - b) / 2 in L∞, (a - b) / sqrt(2) in L2."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(2))
        network[1].bias.zero_()
    images = torch.tensor([[0.8, 0.2], [0.25, 0.75], [0.95, 0.0]]).view(3, 1, 1, 2)
    return network, Block(0, (0, 1, 2), images, torch.zeros(3, dtype=torch.int64), tuple("abc"))


TRUE = {"linf": [0.3], "l2": [0.6 / 2**0.5]}  # of its first images


def require_known(norm, records):
    for record, radius in zip(records, TRUE[norm], strict=False):
        assert record.verified_radius - 1e-6 <= radius
        assert record.broken_radius is None or radius <= record.broken_radius + 1e-6


def require_sound(network, block, settings, records, points):
    """Replay every adversarial example, and read every record as a ledger would."""
    for row, record in enumerate(records):
        about = replace(record, input_sha="ab" * 32)
        assert not [*about.problems(settings.plain())]
        x = block.images[row]
        if record.broken_radius:
            pixels = points[row]
            assert network(pixels.unsqueeze(0)).argmax(1).item() == record.adversarial != record.label
            steps = [Fraction(a) - Fraction(b) for a, b in zip(pixels.flatten().tolist(), x.flatten().tolist())]  # noqa: B905
            length = max(map(abs, steps)) ** 2 if settings.norm == "linf" else sum(step**2 for step in steps)
            assert length <= Fraction(record.broken_radius) ** 2


@pytest.mark.parametrize(("kind", "norm"), [*((kind, "linf") for kind in KINDS), ("crown", "l2"), ("exact", "l2")])
def test_radii_that_are_known_lie_between_the_two(kind, norm):
    network, block = two_pixels()
    settings, records, points = search(kind, network, block, norm=norm, tolerance="1/100")
    step = float(settings.epsilon) / 2**settings.halvings
    assert 1 / 200 < step <= 1 / 100
    require_sound(network, block, settings, records, points)
    require_known(norm, records)
    for record, radius in zip(records, TRUE[norm], strict=False):
        assert radius - record.verified_radius <= step + 1e-9
        assert record.broken_radius - radius <= 2 * step
    assert (records[1].verified_radius, records[1].broken_radius, records[1].found_by) == (0.0, 0.0, "clean")
    if norm == "l2":  # 0.672: the whole ball of radius 1/2 is proved, with a single trial
        assert records[2].verified
        assert (records[2].verified_radius, records[2].broken_radius, records[2].trials) == (0.5, None, 1)


@pytest.fixture(scope="module")
def zoo():
    indices = (0, 3, 96, 130, 217)
    return open_ref("digits-trades-99").baked().eval(), load_block(load_images("digits", "test"), 0, indices)


@pytest.mark.parametrize("kind", ["crown-ibp", "exact"])
def test_a_search_says_what_trying_every_radius_says(kind, zoo):
    network, block = zoo
    settings, records, points = search(kind, network, block, epsilon="32/255", tolerance="8/255")
    require_sound(network, block, settings, records, points)
    verified = []
    for place in range(1, 5):
        at = settings.at(settings.epsilon * place / 4)
        verified.append([record.verified for record in EVALUATORS[kind].evaluate(network, block, at)])
    for row, record in enumerate(records):
        places = [place for place, found in enumerate(verified, start=1) if found[row]]
        assert places == [*range(1, len(places) + 1)]
        assert record.verified_radius == float_below(settings.epsilon * len(places) / 4)
        if kind == "exact" and record.broken_radius:
            assert record.broken_radius <= float(settings.epsilon * (len(places) + 1) / 4)
    assert len({record.verified_radius for record in records}) > 2


def test_radii_do_not_depend_on_the_block(zoo):
    network, block = zoo
    settings, together, _ = search("crown-ibp", network, block, epsilon="32/255")
    for row in (1, 3):
        (alone,) = EVALUATORS["crown-ibp"].evaluate(network, block.rows([row]), settings)
        assert not [*alone.differences(together[row])]
        assert alone.trials == together[row].trials


# Planted bugs ----------------------------------------------------------------------------------


def test_a_bound_that_proves_too_much_is_caught(monkeypatch):
    network, block = two_pixels()
    monkeypatch.setattr(radius_search._Search, "attack_nearby", lambda _search: None)

    def lies(some, settings):
        settings = settings.model_copy(update={"epsilon": settings.epsilon / 2})
        return EVALUATORS["crown-ibp"].evaluate(network, some, settings), some.images

    records, _ = radius_search.search_radii(network, block, wanted("crown-ibp"), lies)
    with pytest.raises(AssertionError):
        require_known("linf", records)


def test_a_radius_that_is_proved_and_broken_stops_the_run(monkeypatch):
    network, block = two_pixels()
    monkeypatch.setattr(radius_search, "distance_above", lambda *_: 0.0625)
    monkeypatch.setattr(radius_search._Search, "attack_nearby", lambda _search: None)
    with pytest.raises(GateError, match=r"image 0: crown-ibp proves radius 0\.29\d*, but pgd breaks it at 0\.0625"):
        search("crown-ibp", network, block)


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("distance_above", lambda *_: 0.28),  # a distance that is too short
        ("float_below", lambda radius: float(radius) + 1 / 64),  # a radius that is rounded up
    ],
)
def test_radii_on_the_wrong_side_are_caught(name, planted, monkeypatch):
    network, block = two_pixels()
    monkeypatch.setattr(radius_search, name, planted)
    with pytest.raises((AssertionError, GateError)):
        require_known("linf", search("crown-ibp", network, block)[1])


def test_a_bisection_that_forgets_failures_is_caught(monkeypatch):
    network, block = two_pixels()
    real = radius_search._Search._learn

    def forgets(one, row, place, record, point):
        real(one, row, place, replace(record, verified=True), point)

    monkeypatch.setattr(radius_search._Search, "_learn", forgets)
    monkeypatch.setattr(radius_search._Search, "attack_nearby", lambda _search: None)
    with pytest.raises(AssertionError):
        require_known("linf", search("crown-ibp", network, block)[1])


# Settings and the command ------------------------------------------------------------------------


def test_settings_spell_the_search_out():
    assert wanted("exact").protocol == "exact-radii@1"
    assert wanted("crown-ibp", tolerance="1/510").protocol == "crown-ibp-radii-tol1_510@1"
    assert wanted("alpha-crown").protocol == "alpha-crown-radii@2"
    assert record_of(wanted("cascade")) is RadiusRecord
    assert wanted("ibp", epsilon="8/255", tolerance="1/255").halvings == 3
    assert wanted("ibp", epsilon="9/255", tolerance="1/255").halvings == 4
    with pytest.raises(ConfigError, match="tolerance: is an option of search_radius"):
        parse_settings({"kind": "ibp", "epsilon": "0.1", "tolerance": "0.01"})
    with pytest.raises(ConfigError, match="tolerance: lies between epsilon"):
        wanted("ibp", epsilon="0.1", tolerance="0.2")
    with pytest.raises(ConfigError, match="epsilon: is the largest radius that is searched, got 0"):
        wanted("ibp", epsilon="0")


def test_the_command_goes_on_image_by_image_and_summarises_quantiles(tmp_path):
    run = tmp_path / "run"
    words = ["certify", "--ckpt", "digits-trades-99", "--method", "exact", "--search-radius", "--epsilon", "32/255"]
    words += ["--tolerance", "16/255", "-n", "3", "--out", str(run)]
    first = CliRunner().invoke(main, words)
    assert first.exit_code == 0, first.output
    assert "median" in first.output
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    ranked = sorted(line["verified_radius"] for line in lines)
    assert summary["radii"]["verified"]["0.5"] == ranked[1]
    assert summary["radii"]["verified"]["0.95"] == ranked[2]
    (run / "summary.json").unlink()
    (run / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines[:2]))
    again = CliRunner().invoke(main, [*words, "--resume"])
    assert again.exit_code == 0, again.output
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert records[:2] == lines[:2]
    assert asdict(RadiusRecord(**{**records[2], "seconds": 0.0})) == {**lines[2], "seconds": 0.0}
