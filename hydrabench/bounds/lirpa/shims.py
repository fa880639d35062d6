"""Patches of torch and numpy for auto_LiRPA 0.3, which are in place only while it runs.

Release 0.3 was written for torch below 1.13. The source releases since (looked at up to 0.7.1) need the clamp only.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MISSING = object()


@contextmanager
def import_shims() -> Iterator[None]:
    """Return what the import of release 0.3 needs."""
    stand_in = ModuleType("numpy.lib.arraysetops")
    stand_in.isin = np.isin  # type: ignore[attr-defined]
    there = stand_in.__name__ in sys.modules or find_spec(stand_in.__name__) is not None
    with _torch_shims():
        if not there:
            sys.modules[stand_in.__name__] = stand_in
        try:
            yield
        finally:
            if not there:
                del sys.modules[stand_in.__name__]


@contextmanager
def shims(library: ModuleType) -> Iterator[None]:
    """Return what release 0.3 needs to read and bound networks; each gap is filled only where it is.

    Args: library: auto_LiRPA, imported.
    """
    operators = import_module(f"{library.__name__}.operators")
    with _torch_shims(), ExitStack() as stack:
        for owner, name, value in (
            *_members(library.BoundedModule),
            *_pooling(operators.BoundMaxPool),
            *_pooling(operators.BoundAveragePool),
            *_slopes(operators.BoundMaxPool),
        ):
            stack.enter_context(_replaced(owner, name, value))
        yield


@contextmanager
def _torch_shims() -> Iterator[None]:
    """Names of torch that were renamed or removed."""
    helper: Any = import_module("torch.onnx.symbolic_helper")  # the name `torch.onnx` exports is another module
    with ExitStack() as stack:
        if not hasattr(helper, "_set_opset_version"):
            exporter = import_module("torch.onnx.utils")._optimize_graph.__globals__["GLOBALS"]
            version = partial(setattr, exporter, "export_onnx_opset_version")
            stack.enter_context(_replaced(helper, "_set_opset_version", version))
        if not hasattr(torch._C.Node, "__getitem__"):
            stack.enter_context(
                _replaced(torch._C.Node, "__getitem__", lambda node, key: getattr(node, node.kindOf(key))(key))
            )
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute, and put back what was there."""
    before = vars(owner).get(name, MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


Replacement = tuple[type[Any], str, Any]


def _members(bounded: type[Any]) -> Iterator[Replacement]:
    """`BoundedModule._named_members` that takes the argument that torch passes since 2.0."""
    original = bounded._named_members
    if "remove_duplicate" in inspect.signature(original).parameters:
        return

    def named_members(
        self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, **_options: Any
    ) -> Iterator[tuple[str, Any]]:
        return original(self, get_members_fn, prefix, recurse)  # type: ignore[no-any-return]

    yield bounded, "_named_members", named_members


def _pooling(pool: type[Any]) -> Iterator[Replacement]:
    """Pooling that gets its coefficients in one piece, because it calls `view`."""
    backward = pool.bound_backward

    def bound_backward(self: Any, last_lower: Any, last_upper: Any, *args: Any, **options: Any) -> Any:
        whole = [A.contiguous() if isinstance(A, Tensor) else A for A in (last_lower, last_upper)]
        return backward(self, *whole, *args, **options)

    yield pool, "bound_backward", bound_backward


def _slopes(pool: type[Any]) -> Iterator[Replacement]:
    """Max pooling that gets the sizes of its slopes as numbers, not as shapes, and these, float32 always, its type.

    Releases since 0.3 need neither, and say more of a start than its name, its size and the rows that are needed.
    """
    begin = pool.init_opt_parameters

    def init_opt_parameters(self: Any, start_nodes: Any) -> None:
        begin(self, [(name, int(np.prod(size)), *more) for name, size, *more in start_nodes])
        for name, slopes in self.alpha.items():
            self.alpha[name] = slopes.detach().to(self.inputs[0].lower).requires_grad_()

    yield pool, "init_opt_parameters", init_opt_parameters


class _Clamp(torch.autograd.Function):
    """clamp(x, low, high) with the gradient 1 on the whole closed interval."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((x >= low) & (x <= high))
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.saved_tensors[0], None, None


class _ClosedClamp(TorchFunctionMode):
    """Inside, `torch.clamp(x, min=a, max=1)` passes gradients at a and 1, too; a > 0 is a leaky ReLU's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is torch.clamp and len(args) == 1 and given.keys() == {"min", "max"} and given["max"] == 1:
            return _Clamp.apply(args[0], given["min"], given["max"])  # type: ignore[no-untyped-call]
        return func(*args, **given)


def slopes_can_leave_their_ends() -> AbstractContextManager[Any]:
    """A context in which auto_LiRPA can optimise slopes that are 0 or 1, as all are in the beginning.

    It clamps them to [0, 1], and newer versions of torch pass no gradient where a clamped value equals its
    bound: no slope ever moved, and alpha-CROWN silently was CROWN.
    """
    end = torch.zeros((), requires_grad=True)
    with torch.enable_grad():
        torch.clamp(end, min=0.0, max=1.0).backward()  # type: ignore[no-untyped-call]
    assert end.grad is not None
    return nullcontext() if end.grad.item() == 1 else _ClosedClamp()
