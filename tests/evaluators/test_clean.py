"""Clean accuracy, and the refusals that all evaluators share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydrabench.data.images import Block
from hydrabench.errors import NonFiniteError
from hydrabench.evaluators import CleanSettings
from hydrabench.evaluators.clean import evaluate_clean


def two_pixel_block(*pairs, labels):
    images = torch.tensor(pairs).reshape(-1, 1, 1, 2)
    count = len(pairs)
    return Block(0, tuple(range(40, 40 + count)), images, torch.tensor(labels), tuple(f"sha{n}" for n in range(count)))


def brighter_pixel():
    """The logits are the two pixels."""
    return nn.Flatten().eval()


def test_records_worked_by_hand():
    """(0.75, 0.25) is class 0 by a margin of 0.5; called class 1 it is wrong by as much."""
    block = two_pixel_block((0.75, 0.25), (0.75, 0.25), labels=[0, 1])
    right, wrong = evaluate_clean(brighter_pixel(), block, CleanSettings())
    assert (right.index, right.input_sha, right.label, right.prediction) == (40, "sha0", 0, 0)
    assert (right.robust, right.broken_by, right.step, right.margin) == (True, None, None, 0.5)
    assert (wrong.index, wrong.input_sha, wrong.label, wrong.prediction) == (41, "sha1", 1, 0)
    assert (wrong.robust, wrong.broken_by, wrong.step, wrong.margin) == (False, "clean", 0, -0.5)
    assert right.seconds == wrong.seconds > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_logit_that_is_not_finite_names_its_image(bad):
    block = two_pixel_block((0.75, 0.25), (0.75, bad), labels=[0, 0])
    with pytest.raises(NonFiniteError, match=r"image 41: a logit of the clean image is NaN .*--precision float64"):
        evaluate_clean(brighter_pixel(), block, CleanSettings())


def test_train_mode_is_refused_wherever_it_hides():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).eval()
    network[1].train()
    with pytest.raises(ValueError, match=r"call network\.eval\(\) first"):
        evaluate_clean(network, two_pixel_block((0.75, 0.25), labels=[0]), CleanSettings())
