"""Activations that exporters write as several operators, put together again: SiLU, hard swish, GELU.

The parts compute the same, but a bound of x and a bound of sigmoid(x) forget that it is the same x.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

GATES: dict[Any, Any] = {torch.sigmoid: F.silu, F.hardsigmoid: F.hardswish}
_CLOSE = 1e-5


def put_together(graph: fx.Graph) -> None:
    """Replace the parts of an activation by the activation."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is operator.mul:
            _gated(graph, node)
    for node in list(graph.nodes):
        if node.target is torch.erf:
            _gelu(graph, node)


def _gated(graph: fx.Graph, product: fx.Node) -> None:
    """x * sigmoid(x) and x * hardsigmoid(x)."""
    pairs: list[tuple[Any, Any]] = [(product.args[0], product.args[1]), (product.args[1], product.args[0])]
    for value, gate in pairs:
        whole = GATES.get(gate.target) if isinstance(gate, fx.Node) and gate.op == "call_function" else None
        if whole is not None and gate.args == (value,) and len(gate.users) == 1:
            _replace(graph, product, whole, value)
            return


def _gelu(graph: fx.Graph, erf: fx.Node) -> None:
    """x (1 + erf(x / sqrt(2))) / 2, in whatever order the three are multiplied."""
    value = _scaled_by(erf.args[0], 1 / math.sqrt(2))
    last = _only_user(erf)
    if value is None or last is None or last.target is not operator.add or 1.0 not in last.args:
        return
    missing = {"value", "half"}
    while missing:
        after = _only_user(last)
        if after is None or after.target is not operator.mul:
            return
        other = after.args[0] if after.args[1] is last else after.args[1]
        found = _factors(other, value)
        if not found <= missing or not found:
            return
        missing, last = missing - found, after
    _replace(graph, last, F.gelu, value)


def _factors(other: Any, value: fx.Node) -> set[str]:
    """Return which of x and 1/2 a factor is, or both."""
    if other is value:
        return {"value"}
    if other == 0.5:
        return {"half"}
    return {"value", "half"} if _scaled_by(other, 0.5) is value else set()


def _scaled_by(node: Any, factor: float) -> fx.Node | None:
    """x, if a node is x times a number, or x divided by its inverse."""
    if not isinstance(node, fx.Node) or node.target not in (operator.mul, operator.truediv):
        return None
    a, b = node.args
    if node.target is operator.mul and isinstance(a, int | float):
        a, b = b, a
    if not isinstance(a, fx.Node) or not isinstance(b, int | float) or b == 0:
        return None
    found = b if node.target is operator.mul else 1 / b
    return a if abs(found - factor) < _CLOSE else None


def _only_user(node: fx.Node) -> fx.Node | None:
    users = [*node.users]
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _replace(graph: fx.Graph, node: fx.Node, function: Any, value: Any) -> None:
    with graph.inserting_before(node):
        node.replace_all_uses_with(graph.call_function(function, (value,)))
    graph.eliminate_dead_code()
