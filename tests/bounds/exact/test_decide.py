"""Branch and bound against the enumeration of all phases, and against itself in other batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hydrabench.bounds.exact import search

NEAR = 1e-3  # margins closer to 0 than this take more subproblems than a test has time for
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def check(instance, decisions):
    """Verdicts agree with the enumeration, and no bound lies above the true minimum."""
    for image, (decision, smallest) in enumerate(zip(decisions, instance.smallest, strict=True)):
        assert decision.lower <= smallest + 1e-9
        if decision.verdict == "broken":
            assert smallest <= 0
            assert instance.network(decision.point.unsqueeze(0)).argmax(1) != instance.y[image]
            step = (decision.point - instance.x[image]).flatten()
            assert step.norm(torch.inf if instance.norm == "linf" else 2) <= instance.epsilon + 1e-9
        if abs(smallest) > NEAR:
            assert decision.verdict == ("verified" if smallest > 0 else "broken")


ACTIVATIONS = pytest.mark.parametrize(
    "activation", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh], ids=lambda kind: kind.__name__
)


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 45), marks=pytest.mark.slow)], ids=["few", "many"])
@ACTIVATIONS
@NORMS
def test_verdicts_are_those_of_the_enumeration_of_all_phases(make_instance, norm, activation, seeds):
    verdicts = []
    for seed in seeds:
        instance = make_instance(seed, activation, norm)
        decisions = instance.decide()
        check(instance, decisions)
        verdicts += [decision.verdict for decision in decisions]
    assert {"verified", "broken"} <= {*verdicts}


@NORMS
def test_without_an_adversarial_example_what_is_not_robust_stays_unknown(make_instance, norm):
    """A limit is kept, up to the parts of one round, and says so; nothing is ever verified wrongly."""
    seen = 0
    for seed in (1, 4):
        instance = make_instance(seed, norm=norm)
        decisions = instance.decide(40, lambda image, _points: [None] * len(image))
        for decision, smallest in zip(decisions, instance.smallest, strict=True):
            assert decision.lower <= smallest + 1e-9
            if smallest < -NEAR:
                assert decision.verdict == "unknown"
                assert 40 <= decision.subproblems <= 40 + 2 * search.ROUND
                seen += 1
    assert seen > 2


def test_a_bound_reaches_the_true_minimum_when_nothing_confirms_it(make_instance):
    """The bound of an image that stays unknown rises to its smallest margin: the search is complete."""
    instance = make_instance(4)
    decisions = instance.decide(300, lambda image, _points: [None] * len(image))
    for decision, smallest in zip(decisions, instance.smallest, strict=True):
        assert smallest < 0
        assert decision.lower == pytest.approx(smallest, abs=1e-3)


def test_an_image_is_decided_alike_alone_and_in_any_batch(make_instance, monkeypatch):
    instance = make_instance(4)
    together = instance.decide()
    assert max(decision.subproblems for decision in together) > 8
    monkeypatch.setattr(search, "BATCH", 4)
    assert counts(instance.decide()) == counts(together)
    monkeypatch.undo()
    for image, decision in enumerate(together):
        part = slice(image, image + 1)
        alone = replace(instance, x=instance.x[part], y=instance.y[part])
        assert counts(alone.decide()) == counts([decision])


def counts(decisions):
    return [(decision.verdict, decision.subproblems, round(decision.lower, 9)) for decision in decisions]
