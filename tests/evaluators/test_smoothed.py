"""Algorithm CERTIFY: its largest radius, its abstentions, and no radius beyond the true distance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest
from torch import nn

from hydrabench.data.images import Block
from hydrabench.errors import DataError, NonFiniteError
from hydrabench.evaluators import SmoothingSettings
from hydrabench.evaluators.smoothed import evaluate_smoothed, uniform_of
from hydrabench.laws import radius_of
from hydrabench.smoothing import RULES, Plan, Sampling, class_counts, clopper_pearson_lower, slack
from hydrabench.smoothing.confidence import randomized_lower


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


# Modes -----------------------------------------------------------------------------------------

MODES = ["cohen", "adaptive", "predict"]


def eight_bit_block(levels, labels=None, first=0):
    return grey_block([float(np.float32(level) / np.float32(255)) for level in levels], labels, first)


@pytest.mark.parametrize("rigor", ["standard", "discrete"])
@pytest.mark.parametrize("mode", MODES)
def test_records_depend_neither_on_the_batch_nor_on_who_shares_it(mode, rigor):
    """Batches of 7, 64 and 1000 noisy images, all together, in another order, and each image alone."""
    chosen = SmoothingSettings(samples=1500, n0=30, mode=mode, rigor=rigor, radii=(0.0, 0.1, 0.2))
    levels = (128, 130, 131, 140, 100, 127)
    network, block = Mean().eval(), eight_bit_block(levels, first=40)
    expected = timeless(evaluate_smoothed(network, block, chosen))
    assert len({record.samples for record in expected}) > 1 or mode in ("cohen", "predict")
    for batch in (7, 64, 1000):
        assert timeless(evaluate_smoothed(network, block, chosen, Sampling(batch=batch))) == expected
    alone = [
        evaluate_smoothed(network, eight_bit_block([level], first=40 + i), chosen) for i, level in enumerate(levels)
    ]
    assert [timeless(records)[0] for records in alone] == expected
    order = [3, 0, 5]
    shuffled = Block(
        0, tuple(block.indices[i] for i in order), block.images[order], block.labels[order],
        tuple(block.shas[i] for i in order),
    )  # fmt: skip
    assert timeless(evaluate_smoothed(network, shuffled, chosen)) == [expected[i] for i in order]


def test_a_record_can_be_worked_out_again_from_its_counts():
    """The looks are prefixes of one stream, and the bound is the best of theirs."""
    chosen = SmoothingSettings(samples=3000, mode="adaptive", radii=(0.0, 0.05, 0.1))
    block = grey_block([0.5, 0.505, 0.51, 0.52, 0.55])
    rule = RULES["adaptive"](Plan(3000, 0.001, 0.25, chosen.radii))
    for row, record in enumerate(evaluate_smoothed(Mean().eval(), block, chosen)):
        assert sum(record.counts) == record.samples == record.looks[-1][0]
        assert record.counts[record.selected] == record.count == record.looks[-1][1]
        assert sum(record.selection) == 100
        best = 0.0
        for n, count in record.looks:
            best = rule.look(n, count, best).p_lower
            key = (0, "smoothing", "estimate", record.index)
            assert class_counts(Mean(), block.images[row], sigma=0.25, draws=n, key=key)[record.selected] == count
        assert record.p_lower == best
        assert 0 < record.alpha_spent <= 0.001 + 1e-12
        assert record.radius_linf == pytest.approx(record.radius / 4)  # 16 pixels
        assert record.mode == "adaptive"


def test_a_randomized_bound_rests_on_a_number_of_the_image_alone_and_is_never_smaller():
    """Its record can be worked out again: the number is 53 bits of a stream keyed by seed and image."""
    block = grey_block([0.5, 0.51, 0.53, 0.9], first=7)
    plain, randomized = (
        evaluate_smoothed(Mean().eval(), block, SmoothingSettings(samples=500, randomized=flag, seed=3))
        for flag in (False, True)
    )
    numbers = {one.index: uniform_of(3, "smoothing", one.index) for one in plain}
    assert len(set(numbers.values())) == 4
    assert all(0.01 <= number <= 1 for number in numbers.values())
    for old, new in zip(plain, randomized, strict=True):
        assert new.count == old.count
        assert new.p_lower >= old.p_lower
        assert new.p_lower == randomized_lower(new.count, 500, alpha=0.001, uniform=numbers[new.index])
    assert min(uniform_of(seed, 0) for seed in range(300)) == 0.01, "what is smaller is raised"


@pytest.mark.parametrize("law", ["uniform", "laplace"])
def test_no_l1_radius_exceeds_the_distance_to_the_boundary(law):
    """Of `Mean`, in L1: 16 |mean - 1/2|. 60 images with alpha = 0.02; 7 or more false ones have probability 1e-4."""
    chosen = SmoothingSettings(law=law, samples=2000, n0=30, alpha=0.02, radii=(0.5,))
    block = grey_block(list(np.linspace(0.4, 0.6, 60)))
    records = evaluate_smoothed(Mean().eval(), block, chosen)
    far = [16 * abs(float(image.mean()) - 0.5) for image in block.images]
    assert sum(record.radius > distance for record, distance in zip(records, far, strict=True)) <= 6
    assert sum(record.radius > 0 for record in records) > 20
    for record in records:
        assert record.radius == (radius_of(record.p_lower, sigma=0.25, law=law) or 0.0)
        assert 0 <= record.radius_linf <= record.radius
        assert not list(replace(record, input_sha="0" * 64).problems(chosen.plain()))
    (problem,) = replace(records[0], input_sha="0" * 64).problems(SmoothingSettings(samples=2000).plain())
    assert "has radius" in problem, "which Gaussian noise does not give"


def test_adaptive_stops_early_where_the_answer_is_clear_and_late_where_it_is_not():
    """Radius 0.1 at 16 pixels and sigma 0.25: means 0.9 and 0.5 are clear, 0.525 lies at the threshold."""
    chosen = SmoothingSettings(samples=6000, mode="adaptive", radii=(0.1,))
    clear, hopeless, near = evaluate_smoothed(Mean().eval(), grey_block([0.9, 0.5, 0.525]), chosen)
    assert (clear.samples, clear.prediction) == (21, 0), "Phi(0.4)^21 = 0.655^21 < 0.001 / 5"
    assert hopeless.samples <= 1600
    assert near.samples > 1600
    assert clear.radius >= 0.1 > hopeless.radius


def test_a_wrong_selection_is_skipped_if_asked_and_the_record_says_so():
    asked = {"samples": 2000, "mode": "adaptive", "radii": (0.05,)}
    block = grey_block([0.9, 0.9], labels=[0, 1])
    right, wrong = evaluate_smoothed(Mean().eval(), block, SmoothingSettings(**asked, label_aware=True))
    assert (right.skipped, wrong.skipped) == (False, True)
    assert (wrong.samples, wrong.looks, wrong.alpha_spent, wrong.abstain, wrong.prediction) == (0, [], None, True, -1)
    assert (wrong.selected, sum(wrong.selection)) == (0, 100)
    measured = evaluate_smoothed(Mean().eval(), block, SmoothingSettings(**asked))
    assert timeless([right]) == timeless(measured[:1])
    assert (measured[1].skipped, measured[1].prediction) == (False, 0)


def test_prediction_abstains_where_the_lead_may_be_chance():
    """On the boundary; elsewhere the class with the most votes, with SciPy's p-value."""
    chosen = SmoothingSettings(samples=1000, mode="predict")
    sure, torn = evaluate_smoothed(Mean().eval(), grey_block([0.6, 0.5]), chosen)
    assert (sure.prediction, sure.abstain, sure.radius) == (0, False, 0.0)
    assert (torn.prediction, torn.abstain) == (-1, True)
    for record in (sure, torn):
        assert sum(record.counts) == 1000
        top, second = max(record.counts), min(record.counts)
        assert record.p_value == pytest.approx(binomtest(top, top + second, 0.5).pvalue)


def test_integer_noise_gives_nearly_the_radii_of_gaussian_noise_and_gives_up_a_little():
    block = eight_bit_block(range(120, 136))
    records = {
        rigor: evaluate_smoothed(Mean().eval(), block, SmoothingSettings(samples=4000, rigor=rigor))
        for rigor in ("standard", "discrete")
    }
    for exact, careful in zip(*records.values(), strict=True):
        assert abs(exact.counts[0] - careful.counts[0]) < 5 * (2 * 4000 / 4) ** 0.5
        bound = clopper_pearson_lower(careful.count, 4000, alpha=0.001)
        assert careful.p_lower == bound - slack(0.25, 16)


def test_integer_noise_is_refused_for_images_between_grey_levels():
    with pytest.raises(DataError, match=r"needs 8-bit images, .*; use --rigor standard"):
        evaluate_smoothed(Mean().eval(), grey_block([0.5]), SmoothingSettings(rigor="discrete", samples=10))
