"""Calls that ask for the shape of a value, which says nothing about its content, and what is computed from them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from hydrabench.bounds.program.arguments import NoRule

ARITHMETIC = {operator.floordiv, operator.mul, operator.add, operator.sub}


def is_size(node: Any) -> bool:
    """Return whether a call asks for a shape or for the size of an axis, or computes with sizes alone."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target == "size"
    if node.target is getattr:
        return bool(node.args[1] == "shape")
    if node.target is operator.getitem:
        return is_size(node.args[0])
    nodes = [value for value in node.args if isinstance(value, fx.Node)]
    return node.op == "call_function" and node.target in ARITHMETIC and bool(nodes) and all(map(is_size, nodes))


def is_batch_size(node: Any) -> bool:
    """Return whether a call is x.size(0), x.size()[0] or x.shape[0]; all values of a program share the batch axis."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method" and node.target == "size":
        return (*node.args[1:], *node.kwargs.values()) == (0,)
    if node.op == "call_function" and node.target is operator.getitem:
        return bool(node.args[1] == 0) and is_size(node.args[0]) and not _is_number(node.args[0])
    return False


def _is_number(size: Any) -> bool:
    """Return whether a call asks for the size along one axis rather than for all of them."""
    return is_batch_size(size) or (size.target == "size" and len(size.args) + len(size.kwargs) > 1)


def shape_of(axes: Sequence[Any], value: Any) -> tuple[list[fx.Node], Callable[..., list[int]]]:
    """Return what axes that are numbers or computed from sizes are, once the shapes of values are known.

    Args: value: the node of the value that is reshaped.
    Returns: the nodes of the further values whose shapes are needed, and a function of the shape of `value` and of
        theirs.
    """
    nodes = [value]
    for axis in axes:
        _collect(axis, nodes)

    def found(*shapes: torch.Size) -> list[int]:
        known = dict(zip(nodes, shapes, strict=True))
        return [int(_number(axis, known)) for axis in axes]

    return nodes[1:], found


def _collect(size: Any, nodes: list[fx.Node]) -> None:
    if is_batch_size(size):
        raise NoRule("reshapes the axes of an image by the size of the batch, which has no rule")
    if isinstance(size, fx.Node):
        asks = size.op == "call_method" or size.target is getattr
        for part in size.args:
            if asks and isinstance(part, fx.Node) and part not in nodes:
                nodes.append(part)
            elif not asks:
                _collect(part, nodes)


def _number(size: Any, shapes: Mapping[fx.Node, torch.Size]) -> Any:
    if not isinstance(size, fx.Node):
        return size
    if size.op == "call_method" or size.target is getattr:
        shape, axes = shapes[size.args[0]], (*size.args[1:], *size.kwargs.values())  # type: ignore[index]
        return shape[axes[0]] if size.op == "call_method" and axes else shape  # type: ignore[index]
    first, second = (_number(part, shapes) for part in size.args)
    return first[second] if size.target is operator.getitem else size.target(first, second)  # type: ignore[operator]
