"""Corrupted images: each drawn under a seed of its own, and what the optional library makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hydrabench.data.images import Block
from hydrabench.errors import ConfigError, HydrabenchError
from hydrabench.evaluators import EVALUATORS, CorruptionSettings, corruptions
from hydrabench.evaluators.corruptions import evaluate_corruptions
from hydrabench.ledger import CORRUPTIONS, CorruptionRecord, read_record


def problem(side=32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.AvgPool2d(side // 4), nn.Flatten(), nn.Linear(48, 5)).eval()
        images = (torch.rand(6, 3, side, side) * 255).round() / 255
    labels = network(images).argmax(1)
    return network, Block(0, tuple(range(6)), images, labels, ("0" * 64,) * 6)


def darken(image, *, corruption_name, severity, seed=None):
    """A corruption that can be worked out: 51 levels darker for each severity, fog alone draws noise."""
    noise = np.random.randint(0, 200, image.shape) if corruption_name == "fog" else 0  # noqa: NPY002
    return (image.astype(int) - 51 * severity + noise).clip(0, 255).astype("uint8")


def test_every_image_is_classified_as_it_is_corrupted(monkeypatch):
    monkeypatch.setattr(corruptions, "library", lambda: darken)
    network, block = problem()
    records = evaluate_corruptions(network, block, CorruptionSettings())
    for row, record in enumerate(records):
        darker = [(block.images[row : row + 1] - 0.2 * severity).clamp(min=0) for severity in (1, 2, 3, 4, 5)]
        expected = [network(image).argmax(1).item() == record.label for image in darker]
        assert record.right["snow"] == expected
        assert read_record(record.__dict__, CorruptionRecord, {}) == record
    found = EVALUATORS["corruptions"].metrics([record.__dict__ for record in records], CorruptionSettings())
    assert len(found) == 2 + len(CORRUPTIONS)
    every = [one for record in records for verdicts in record.right.values() for one in verdicts]
    assert sum(found["corruption_accuracy"].values) / 6 == pytest.approx(sum(every) / len(every))
    alone = [one for row in range(6) for one in evaluate_corruptions(network, block.rows([row]), CorruptionSettings())]
    assert [replace(one, seconds=0) for one in alone] == [replace(one, seconds=0) for one in records]


def test_images_that_the_library_does_not_take_are_refused():
    network, block = problem(side=16)
    with pytest.raises(ConfigError, match="RGB images of at least 32 x 32 pixels, got 3 x 16 x 16"):
        EVALUATORS["corruptions"].suits(network, block, CorruptionSettings())


def test_without_the_library_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imagecorruptions", None)
    with pytest.raises(HydrabenchError, match=r"pip install 'hydrabench\[corruptions\]'"):
        EVALUATORS["corruptions"].require(None, CorruptionSettings())


def test_the_library_gives_the_same_images_again():
    pytest.importorskip("imagecorruptions")
    network, block = problem()
    first, again = (evaluate_corruptions(network, block, CorruptionSettings()) for _ in range(2))
    assert [one.right for one in first] == [one.right for one in again]
