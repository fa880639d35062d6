"""Who watches hears of every layer that is bounded; who does not costs nothing and changes nothing."""

from __future__ import annotations

import pytest
import torch

from hydrabench.bounds import BOUNDS, Moment, patches, watched


@pytest.mark.parametrize(("bound", "method"), [("crown", "crown"), ("symbolic", "symbolic"), ("cascade", "crown")])
def test_every_layer_is_told_up_to_its_end_and_bounds_stay_as_they_are(tiny_problem, monkeypatch, bound, method):
    network, x, y, _ = tiny_problem(4)
    monkeypatch.setitem(patches.CHUNK, "cpu", 300)
    moments: list[Moment] = []
    with torch.no_grad():
        expected = BOUNDS[bound](network, x, y, 0.3)
        with watched(moments.append):
            found = BOUNDS[bound](network, x, y, 0.3)
        BOUNDS[bound](network, x, y, 0.3)
    assert torch.equal(found, expected)
    assert {moment.method for moment in moments} == {method}
    assert [(moment.layer, moment.share) for moment in moments] == sorted({(m.layer, m.share) for m in moments})
    ends = {moment.layer: moment.share for moment in moments}
    assert set(ends.values()) == {1}
    assert len(moments) > len(ends)
    assert all(1 <= moment.layer <= moment.layers for moment in moments)


def test_an_inner_watcher_does_not_stay(tiny_problem):
    network, x, y, _ = tiny_problem(4)
    outer: list[Moment] = []
    inner: list[Moment] = []
    with torch.no_grad(), watched(outer.append):
        with watched(inner.append):
            BOUNDS["crown"](network, x, y, 0.3)
        assert inner
        assert not outer
        BOUNDS["crown"](network, x, y, 0.3)
    assert outer == inner


def test_a_moment_reads_as_a_line():
    assert str(Moment("crown", 7, 27, 0.414)) == "layer 7/27 41% · crown"
