"""Losses and margins: worked by hand, and what every loss must do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hydrabench.attacks import LOSSES, TARGETED_LOSSES, margin

seeds = st.integers(0, 2**31)


def random_logits(seed, images=6, classes=5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (images,), generator=generator)


def test_margins_worked_by_hand():
    """[2, 5, 1] and class 1: 5 - 2. [3, -1, 0] and class 2: 0 - 3. [4, 4, 0] and class 0: 4 - 4."""
    logits = torch.tensor([[2.0, 5.0, 1.0], [3.0, -1.0, 0.0], [4.0, 4.0, 0.0]])
    assert margin(logits, torch.tensor([1, 2, 0])).tolist() == [3.0, -3.0, 0.0]


def test_cross_entropy_worked_by_hand():
    """softmax(0, ln 3) = (1/4, 3/4), so the losses of the two classes are ln 4 and ln 4/3."""
    logits = torch.tensor([[0.0, math.log(3)]]).repeat(2, 1)
    assert LOSSES["ce"](logits, torch.tensor([0, 1])).tolist() == pytest.approx([math.log(4), math.log(4 / 3)])


def test_margin_loss_worked_by_hand():
    """Largest other minus true: 2 - 5 and 3 - 0."""
    logits = torch.tensor([[2.0, 5.0, 1.0], [3.0, -1.0, 0.0]])
    assert LOSSES["margin"](logits, torch.tensor([1, 2])).tolist() == [-3.0, 3.0]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@given(seed=seeds, drop=st.floats(0.01, 5))
@settings(max_examples=30)
def test_lowering_the_true_logit_raises_the_loss_of_that_image_only(loss, seed, drop):
    logits, y = random_logits(seed)
    y[2] = logits[2].argmax()  # of a class that is third and stays so, DLR says 1 whatever its logit
    before = loss(logits, y)
    assert before.shape == (6,)
    logits[2, y[2]] -= drop
    after = loss(logits, y)
    assert after[2] > before[2]
    others = torch.arange(6) != 2
    assert torch.equal(after[others], before[others])


@given(seed=seeds)
@settings(max_examples=30)
def test_margin_is_positive_exactly_where_the_prediction_is_right(seed):
    logits, y = random_logits(seed, images=40)
    right = logits.argmax(1) == y
    assume(right.any() and not right.all())
    assert torch.equal(margin(logits, y) > 0, right)


def test_margin_loss_keeps_its_gradient_where_cross_entropy_loses_it():
    """At logits (1000, 0, 0) the softmax is (1, 0, 0) to the last bit: the cross entropy's gradient is exactly zero."""
    y = torch.tensor([0])
    slopes = {}
    for name in ("ce", "margin"):
        logits = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
        LOSSES[name](logits, y).sum().backward()
        slopes[name] = logits.grad.tolist()
    assert slopes == {"ce": [[0.0, 0.0, 0.0]], "margin": [[-1.0, 1.0, 0.0]]}


def test_difference_of_logits_ratio_worked_by_hand():
    """(9, 5, 3, 1): class 0 gives -(9 - 5) / (9 - 3), class 2 -(3 - 9) / (9 - 3); towards class 3, -8 / (9 - 2)."""
    logits = torch.tensor([[9.0, 5.0, 3.0, 1.0]]).repeat(2, 1)
    assert LOSSES["dlr"](logits, torch.tensor([0, 2])).tolist() == pytest.approx([-2 / 3, 1.0])
    found = TARGETED_LOSSES["dlr"](logits[:1], torch.tensor([0]), torch.tensor([3]))
    assert found.tolist() == pytest.approx([-8 / 7])


@pytest.mark.parametrize("loss", TARGETED_LOSSES.values(), ids=TARGETED_LOSSES)
@given(seed=seeds, share=st.floats(0.01, 0.99))
@settings(max_examples=20)
def test_raising_the_logit_of_the_target_raises_a_targeted_loss(loss, seed, share):
    """The lowest logit is raised by a share of its distance to the next one, so that it stays the lowest."""
    logits, _ = random_logits(seed)
    y, target = logits.argmax(1), logits.argmin(1)
    before = loss(logits, y, target)
    lowest = logits.sort(1).values
    raised = logits.scatter_add(1, target[:, None], share * (lowest[:, 1:2] - lowest[:, :1]))
    assert (loss(raised, y, target) > before).all()


def test_margin_refuses_a_single_class():
    with pytest.raises(ValueError, match=r"at least two classes, got logits of shape \(3, 1\)"):
        margin(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
