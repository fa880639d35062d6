"""Bugs planted in alpha-CROWN's choice of slopes: each is caught by a check that passes without it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from hydrabench.bounds import alpha_crown_margins
from hydrabench.bounds.alpha import Search
from hydrabench.bounds.slopes import Slopes
from tests.bounds import test_alpha, test_alpha_search
from tests.helpers.alpha_problems import SHORT, planar, problem
from tests.helpers.attack import descended, grid_minimum


def bounds_hold():
    for seed in range(4):
        network, x, y = planar(seed)
        found = alpha_crown_margins(network, x, y, 0.1, search=Search(iterations=30))
        assert (found <= grid_minimum(network, x, y, 0.1, "linf") + 1e-9).all()


def wrong_labels_are_not_proved():
    network, x, y, rng = problem(0)
    wrong = (y + 1) % 4
    found = alpha_crown_margins(network, x, wrong, 0.1, search=SHORT)
    assert (found <= descended(network, x, wrong, 0.1, "linf", rng) + 1e-5).all()


CHECKS = (
    bounds_hold,
    wrong_labels_are_not_proved,
    test_alpha.test_the_slope_of_one_neuron_worked_by_hand,
    partial(test_alpha_search.test_a_verdict_ignores_the_rest_of_its_batch, "linf", 1.0, "output"),
)


def slopes_of_another_image(patch):
    of_each = Slopes.passed

    def passed(mine, rows):
        return of_each(changed(mine, chosen=mine.chosen.roll(1, 0)), rows)

    patch.setattr(Slopes, "passed", passed)


def changed(slopes, **values):
    found = copy.copy(slopes)
    for name, value in values.items():
        setattr(found, name, value)
    return found


def lines_of_another_image(patch):
    start = Slopes.of.__func__

    def of(cls, operation, rows, box):
        return start(cls, operation, rows, box.images(torch.arange(len(box.center)).roll(1)))

    patch.setattr(Slopes, "of", classmethod(of))


def slopes_that_are_not_clamped(patch):
    def climb(mine, gradient, rate, _step):
        mine.chosen = (mine.chosen + rate * gradient.sign()).detach().requires_grad_()

    patch.setattr(Slopes, "climb", climb)


def slopes_that_go_down(patch):
    climb = Slopes.climb
    patch.setattr(Slopes, "climb", lambda mine, gradient, *more: climb(mine, -gradient, *more))


def slopes_clamped_in_the_pass(patch):
    passed = Slopes.passed
    patch.setattr(Slopes, "passed", lambda mine, rows: passed(changed(mine, chosen=mine.chosen.clamp(0, 1)), rows))


def lines_swapped(patch):
    passed = Slopes.passed

    def swapped(mine, rows):
        chord = (mine.chosen * 0 + mine.above.unsqueeze(1)), mine.chosen[:, 0].detach()
        return passed(changed(mine, chosen=chord[0], above=chord[1]), rows)

    patch.setattr(Slopes, "passed", swapped)


def no_constant(patch):
    passed = Slopes.passed
    patch.setattr(Slopes, "passed", lambda mine, rows: passed(changed(mine, high=0 * mine.high), rows))


BUGS = (
    slopes_of_another_image,
    lines_of_another_image,
    slopes_that_are_not_clamped,
    slopes_that_go_down,
    slopes_clamped_in_the_pass,
    lines_swapped,
    no_constant,
)


def caught():
    found = []
    for number, check in enumerate(CHECKS):
        try:
            check()
        except AssertionError:
            found.append(number)
    return found


def test_without_a_bug_no_check_fails():
    assert caught() == []


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant, monkeypatch):
    plant(monkeypatch)
    assert caught()
