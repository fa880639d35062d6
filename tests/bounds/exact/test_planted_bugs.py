"""Would the tests notice? Bugs of branch and bound, planted one at a time, and the check that must fail.

The check is that of `test_decide`: no bound above the true minimum, and no image verified that is not robust.
"""

from __future__ import annotations

import pytest

from hydrabench.bounds.exact import search
from hydrabench.bounds.exact.queue import Queue
from hydrabench.bounds.exact.splits import Constraints, Subproblem

SEEDS = (1, 4)  # images whose smallest margin is just below 0


def is_sound(make_instance):
    """Whether no bound of some instances contradicts the enumeration of all phases; nothing is confirmed as broken."""
    for seed in SEEDS:
        instance = make_instance(seed, images=1)
        for decision, smallest in zip(
            instance.decide(60, lambda image, _points: [None] * len(image)), instance.smallest, strict=True
        ):
            if decision.lower > smallest + 1e-9 or (decision.verdict == "verified" and smallest < 0):
                return False
    return True


def test_what_is_tested_is_sound(make_instance):
    assert is_sound(make_instance)


def one_side_twice(monkeypatch):
    cut = Subproblem.cut
    monkeypatch.setattr(Subproblem, "cut", lambda *args: (cut(*args)[1],) * 2)


def wrong_sign_of_a_multiplier(monkeypatch):
    carried = Constraints.carried

    def turned(self, layout, number, rows):
        self.sides = -self.sides
        try:
            return carried(self, layout, number, rows)
        finally:
            self.sides = -self.sides

    monkeypatch.setattr(Constraints, "carried", turned)


def negative_multipliers(monkeypatch):
    climb = Constraints.climb

    def lowered(self, *args):
        climb(self, *args)
        self.multipliers = self.multipliers - 0.5

    monkeypatch.setattr(Constraints, "climb", lowered)


def boxes_cut_too_far(monkeypatch):
    narrowed = Constraints.narrowed

    def shifted(self, lower, upper):
        self.points = self.points + 0.2 * self.sides
        try:
            return narrowed(self, lower, upper)
        finally:
            self.points = self.points - 0.2 * self.sides

    monkeypatch.setattr(Constraints, "narrowed", shifted)


def a_subproblem_dropped(monkeypatch):
    pop = Queue.pop
    monkeypatch.setattr(Queue, "pop", lambda self, count: pop(self, count)[1:] or pop(self, 1))


def a_part_never_pushed(monkeypatch):
    best = search._Search._best
    monkeypatch.setattr(search._Search, "_best", lambda *args: best(*args)[:1])


def an_unproved_leaf_taken_for_proved(monkeypatch):
    add = search._Tree.add

    def early(self, subproblem):
        if len(subproblem.places) < 3:
            add(self, subproblem)

    monkeypatch.setattr(search._Tree, "add", early)


BUGS = [
    one_side_twice,
    wrong_sign_of_a_multiplier,
    negative_multipliers,
    boxes_cut_too_far,
    a_subproblem_dropped,
    a_part_never_pushed,
    an_unproved_leaf_taken_for_proved,
]


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant, make_instance, monkeypatch):
    plant(monkeypatch)
    assert not is_sound(make_instance)
