from __future__ import annotations

import sys
from importlib import import_module

import pytest
import torch

from hydrabench.bounds.lirpa import shims


def test_a_clamp_passes_gradients_at_its_ends_and_none_outside():
    """clamp(x, a, 1) at a - 1, a, (a + 1) / 2, 1, 2: the gradients 0, 1, 1, 1, 0; a is 0, or a leaky ReLU's slope."""
    for low in (0, 0.1):
        x = torch.tensor([low - 1, low, (low + 1) / 2, 1.0, 2.0], requires_grad=True)
        with shims._ClosedClamp():
            torch.clamp(x, min=low, max=1.0).sum().backward()
        assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_other_clamps_are_left_alone():
    x = torch.tensor([-1.0, 3.0])
    with shims._ClosedClamp():
        assert torch.clamp(x, min=0).tolist() == [0, 3]
        assert torch.clamp(x, 0, 2).tolist() == [0, 2]


class Pool:
    """Max pooling as the source releases have it: a start node is name, size, rows, and whether it is the last."""

    def __init__(self):
        self.inputs = [type("Value", (), {"lower": torch.zeros(1, dtype=torch.float64)})]

    def init_opt_parameters(self, start_nodes):
        self.seen = start_nodes
        self.alpha = {name: torch.ones(size) for name, size, *_ in start_nodes}


@pytest.mark.parametrize("more", [(None,), (None, False)], ids=["0.3", "since"])
def test_slopes_of_max_pooling_begin_with_any_release(more):
    pool = Pool()
    with shims._replaced(*one(shims._slopes(Pool))):
        pool.init_opt_parameters([("/7", torch.Size([2, 3]), *more), ("/9", 4, *more)])
    assert pool.seen == [("/7", 6, *more), ("/9", 4, *more)]
    assert {name: (len(slopes), slopes.dtype, slopes.requires_grad) for name, slopes in pool.alpha.items()} == {
        "/7": (6, torch.float64, True),
        "/9": (4, torch.float64, True),
    }


def one(replacements):
    (found,) = replacements
    return found


def test_members_are_replaced_only_where_the_argument_is_missing_and_put_back():
    class Newer:
        def _named_members(self, get_members_fn, prefix="", recurse=True, remove_duplicate=True):
            """As torch has it."""

    class Older:
        def _named_members(self, get_members_fn, prefix="", recurse=True):
            yield prefix, recurse

    class Heir(Older):
        pass

    assert list(shims._members(Newer)) == []
    before = Older._named_members
    for owner in (Older, Heir):
        with shims._replaced(*one(shims._members(owner))):
            assert list(owner()._named_members(None, "p", remove_duplicate=False)) == [("p", True)]
    assert Older._named_members is before
    assert "_named_members" not in vars(Heir)


def test_names_that_are_there_are_not_replaced(monkeypatch):
    helper = import_module("torch.onnx.symbolic_helper")
    mine = object()
    monkeypatch.setattr(helper, "_set_opset_version", mine, raising=False)
    with shims.import_shims():
        assert helper._set_opset_version is mine
    assert helper._set_opset_version is mine


def test_an_error_inside_puts_everything_back():
    helper = import_module("torch.onnx.symbolic_helper")
    before = dict(vars(helper)), dict(vars(torch._C.Node)), "numpy.lib.arraysetops" in sys.modules

    def fail():
        with shims.import_shims():
            assert hasattr(torch._C.Node, "__getitem__")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (dict(vars(helper)), dict(vars(torch._C.Node)), "numpy.lib.arraysetops" in sys.modules) == before
