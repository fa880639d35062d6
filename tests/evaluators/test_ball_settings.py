"""Radii of a security curve: read as they are written, spelt out in the protocol, inherited upwards."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from hydrabench.attacks import lengths
from hydrabench.data.images import Block
from hydrabench.errors import ConfigError
from hydrabench.evaluators import PgdSettings, parse_settings, recorded_settings
from hydrabench.evaluators.attacking import curve_metrics
from hydrabench.evaluators.pgd import evaluate_pgd, pgd_points
from hydrabench.ledger import CurveRecord, read_record


def problem(count=40):
    """A small random network and images that it gets right, but for the first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)).eval()
        images = torch.rand(count, 1, 4, 4)
    labels = network(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    return network, Block(0, tuple(range(count)), images, labels, tuple(f"{index:064x}" for index in range(count)))


@pytest.mark.parametrize(
    ("text", "radii", "protocol"),
    [
        ("1/255,2/255,4/255", (1, 2, 4), "pgd-50-curve1_255+2_255+4_255@2"),
        ("4/255, 1/255", (1, 4), "pgd-50-curve1_255+4_255@2"),
        ("0:3/255:1/255", (0, 1, 2, 3), "pgd-50-curve0to3_255by1_255@2"),
        ("1/255:4/255:2/255", (1, 3), "pgd-50-curve1_255+3_255@2"),
    ],
)
def test_several_radii_are_read_exactly_and_stand_in_the_protocol(text, radii, protocol):
    settings = parse_settings({"kind": "pgd", "epsilon": text})
    assert settings.epsilons == tuple(Fraction(level, 255) for level in radii)
    assert settings.epsilon == settings.epsilons[-1]
    assert settings.protocol == protocol
    assert recorded_settings(settings.plain(), protocol) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1/255,eight", "'eight' in '1/255,eight' is no radius; write 1/255,2/255,4/255 or 0:16/255:1/255"),
        ("0:16/255", "is no FIRST:LAST:STEP; write for example 0:16/255:1/255"),
        ("0:1:0", "is no FIRST:LAST:STEP"),
        ("0:1:0.0001", "has 10,001 radii, at most 1000 are allowed"),
        ("1/255,1/255", "names one radius twice"),
        ("1/255,9", "epsilon '9' lies outside"),
    ],
)
def test_what_is_no_list_of_radii_is_explained(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings({"kind": "pgd", "epsilon": text})


def test_a_curve_holds_the_smallest_radius_that_broke_each_image_and_never_rises():
    """What one radius breaks is not attacked again; at its first radius a curve is a run of that radius."""
    network, block = problem()
    settings = PgdSettings(epsilon="0,0.02,0.04,0.08,0.16", steps=8)
    records, points = pgd_points(network, block, settings)
    assert all(isinstance(record, CurveRecord) for record in records)
    found = {record.distance for record in records}
    assert len(found) >= 5, "the images are too much alike"
    alone = evaluate_pgd(network, block, settings.at(Fraction("0.02")))
    assert [record.distance in (0, 0.02) for record in records] == [not record.robust for record in alone]
    for record, x, point in zip(records, block.images, points, strict=True):
        assert not list(record.problems(settings.plain()))
        if record.distance:
            assert network(point[None]).argmax(1) != record.label
            assert lengths((point.double() - x.double())[None], "linf") <= record.distance
    metrics = curve_metrics([record.__dict__ for record in records], settings)
    shares = [sum(metrics[f"robust_accuracy@{radius}"].values) for radius in ("0", "0.02", "0.04", "0.08", "0.16")]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == sum(metrics["clean_accuracy"].values)
    assert shares[-1] == sum(record.robust for record in records)
    assert len(metrics) == 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"distance": 0.01}, "says robust True with distance 0.01"),
        ({"distance": -1.0}, "has distance -1, which is at least 0"),
        ({"distance": 0.0}, "has distance 0.0, but predicts 1 for label 1"),
    ],
)
def test_a_distance_that_cannot_be_is_refused(changed, message):
    robust = CurveRecord(0, "0" * 64, 1, 1, 0.1, robust=True, broken_by=None, step=None, margin=1.0, distance=None)
    settings = PgdSettings(epsilon="0.02,0.04").plain()
    assert not list(robust.problems(settings))
    with pytest.raises(ValueError, match=message):
        read_record(replace(robust, **changed).__dict__, CurveRecord, settings)
