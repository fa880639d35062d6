"""Algorithm CERTIFY: its largest radius, its abstentions, and no radius beyond the true distance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import binom
from torch import nn

from hydrabench.config import SmoothingSettings
from hydrabench.data.images import Block
from hydrabench.errors import NonFiniteError
from hydrabench.evaluators import evaluate_smoothed
from hydrabench.smoothing import class_counts


class Mean(nn.Module):
    """Class 0 if the mean pixel exceeds 1/2: a linear classifier with boundary distance (mean - 1/2) * 4 at 4 x 4."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([mean, torch.full_like(mean, 0.5)], dim=1)


class Always(nn.Module):
    def forward(self, x):
        return torch.tensor([0.0, 3.0, 1.0]).expand(len(x), 3)


def grey_block(levels, labels=None, first=0):
    levels = torch.as_tensor(levels)
    images = levels.reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    indices = tuple(range(first, first + len(levels)))
    labels = torch.zeros(len(levels), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Block(0, indices, images, labels, tuple(f"sha{index}" for index in indices))


def timeless(records):
    return [replace(record, seconds=0.0) for record in records]


def test_a_constant_classifier_gets_the_largest_radius_there_is():
    """All of 100,000 agree: 0.25 * Phi^-1(0.001^(1/100000)) = 0.95286."""
    (record,) = evaluate_smoothed(Always().eval(), grey_block([0.5], labels=[2], first=9), SmoothingSettings())
    assert (record.index, record.input_sha, record.label) == (9, "sha9", 2)
    assert (record.prediction, record.selected, record.abstain) == (1, 1, False)
    assert (record.count, record.samples) == (100_000, 100_000)
    assert record.p_lower == pytest.approx(0.001 ** (1 / 100_000), rel=1e-12)
    assert record.radius == pytest.approx(0.95286, abs=5e-6)
    assert record.seconds > 0


def test_an_image_on_the_boundary_is_abstained_on():
    chosen = SmoothingSettings(samples=2000)
    records = evaluate_smoothed(Mean().eval(), grey_block([0.5] * 10), chosen)
    for record in records:
        assert (record.prediction, record.radius, record.abstain) == (-1, 0.0, True)
        assert record.selected in (0, 1)
        assert 0 < record.p_lower <= 0.5


def test_one_set_of_draws_selects_and_another_one_estimates():
    """On the boundary a single selection draw often picks the class that the estimation sees less often."""
    chosen = SmoothingSettings(n0=1, samples=400, seed=5)
    block = grey_block([0.5] * 20, first=30)
    records = evaluate_smoothed(Mean().eval(), block, chosen)
    for row, record in enumerate(records):
        counts = [
            class_counts(
                Mean(), block.images[row], sigma=0.25, draws=draws, key=(5, "smoothing", purpose, record.index)
            )
            for purpose, draws in (("select", 1), ("estimate", 400))
        ]
        assert record.selected == counts[0].argmax()
        assert record.count == counts[1][record.selected]
    assert any(record.count < 200 for record in records)
    assert any(record.count > 200 for record in records)


def test_no_radius_exceeds_the_distance_to_the_boundary():
    """The smoothed linear classifier's boundary is the base classifier's, at 4 * |mean - 1/2|.

    Each radius may exceed it with probability alpha = 0.01; of 100, more than 6 do so with
    probability below 1e-4.
    """
    levels = torch.linspace(0.44, 0.56, 100)
    records = evaluate_smoothed(Mean().eval(), grey_block(levels), SmoothingSettings(samples=2000, alpha=0.01))
    distances = [4 * abs(level - 0.5) for level in levels.tolist()]
    false = sum(record.radius > distance for record, distance in zip(records, distances, strict=True))
    assert false <= 6
    assert binom.sf(6, 100, 0.01) < 1e-4
    certified = [record for record in records if not record.abstain]
    assert len(certified) > 50
    assert {record.prediction for record in records} == {0, 1, -1}
    ratios = [record.radius / distance for record, distance in zip(records, distances, strict=True)]
    assert max(ratios[:20]) > 0.8, "the radii are sound only because they are tiny"


def test_a_certificate_depends_on_seed_and_index_alone():
    network, chosen = Mean().eval(), SmoothingSettings(samples=500)
    together = timeless(evaluate_smoothed(network, grey_block([0.5, 0.52, 0.54], first=3), chosen))
    alone = [
        timeless(evaluate_smoothed(network, grey_block([level], first=first), chosen))[0]
        for level, first in ((0.54, 5), (0.5, 3), (0.52, 4))
    ]
    assert together == [alone[1], alone[2], alone[0]]
    other = timeless(evaluate_smoothed(network, grey_block([0.5, 0.52, 0.54], first=3), replace_seed(chosen, 1)))
    assert [record.count for record in other] != [record.count for record in together]


def replace_seed(chosen, seed):
    return SmoothingSettings(**{**chosen.model_dump(), "seed": seed})


def test_a_nan_under_noise_names_the_image():
    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1) * torch.nan

    with pytest.raises(NonFiniteError, match="image 12: "):
        evaluate_smoothed(Broken().eval(), grey_block([0.5], first=12), SmoothingSettings(samples=10))


def test_train_mode_is_refused():
    with pytest.raises(ValueError, match="eval mode"):
        evaluate_smoothed(Mean(), grey_block([0.5]), SmoothingSettings(samples=10))
