"""The queue gives subproblems in the order of their bounds, however few it may keep in memory."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hydrabench.bounds.exact import queue
from hydrabench.bounds.exact.queue import Queue
from hydrabench.bounds.exact.splits import Subproblem


def subproblem(lower, serial):
    return Subproblem(0, lower, np.zeros(1, np.int32), np.ones(1, np.int8), np.zeros(1), np.zeros(1), serial=serial)


@pytest.mark.parametrize("most", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_bound_comes_first_whether_it_lies_on_the_disk_or_not(most, seed):
    """Equal bounds come in the order of their serial numbers; pushes and pops take turns."""
    rng, known, waiting, serial = random.Random(seed), [], Queue(most), 0
    for _ in range(60):
        for _ in range(rng.randrange(8)):
            lower = -float(rng.randrange(20))
            waiting.push(subproblem(lower, serial))
            known.append((lower, serial))
            serial += 1
        known.sort()
        assert len(waiting) == len(known)
        assert waiting.lowest() == (known[0][0] if known else float("inf"))
        assert len(waiting.near) <= most
        count = rng.randrange(6)
        assert [(one.lower, one.serial) for one in waiting.pop(count)] == known[:count]
        del known[:count]


def test_a_search_that_spills_finds_the_same(make_instance, monkeypatch):
    instance = make_instance(4)
    kept = instance.decide(150, lambda image, _points: [None] * len(image))
    assert max(decision.subproblems for decision in kept) >= 150
    spilled, push, of = [], Queue.push, queue._Run.of

    def push_into_little(self, subproblem):
        self.most = 4
        push(self, subproblem)

    monkeypatch.setattr(Queue, "push", push_into_little)
    monkeypatch.setattr(queue._Run, "of", lambda entries: spilled.append(len(entries)) or of(entries))
    again = instance.decide(150, lambda image, _points: [None] * len(image))
    assert spilled
    assert [(one.verdict, one.subproblems, one.lower) for one in again] == [
        (one.verdict, one.subproblems, one.lower) for one in kept
    ]
