"""From a network to a program: its operations in order, with the tensors that they apply right now.

Nothing is cached, because a stale program would be an unsound bound. `tracing` finds the operations,
`convert` and `calls` read them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hydrabench.bounds.program.arguments import NoRule
from hydrabench.bounds.program.calls import refusal
from hydrabench.bounds.program.convert import batch_scale, reader
from hydrabench.bounds.program.convolutions import Convolution
from hydrabench.bounds.program.linear import Dense, Scale
from hydrabench.bounds.program.operations import Operation
from hydrabench.bounds.program.tracing import Step, steps_of


@dataclass(frozen=True)
class Program:
    """The steps of a network in the order in which they run; the last one gives its output."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation with its present tensors, and the numbers of the values it takes.

    Value 0 is the network's input, value i + 1 the result of node i. Every value but the last has a reader.
    """

    operation: Operation
    inputs: tuple[int, ...]


def program_of(network: nn.Module) -> Program:
    """Return the program of a network.

    Raises: UnsupportedLayerError naming the first layer or function that the bounds do not know.
    """
    return Program(steps_of(network))


def read(program: Program, clean: Tensor | None = None, *, fold: bool = True) -> list[Node]:
    """Read the parameters that the layers of a program apply now.

    Gradients flow into the parameters, through parametrizations into what these compute them from.
    Each weight is read once. Running statistics are not touched. Batch norm is folded into the linear
    operation in front of it where nothing else reads that one's result; in front of a convolution it
    stays, because padding is zero before the convolution and not before the batch norm.

    Args:
        program: what `program_of` returned.
        clean: images, (B, C, H, W), in [0, 1]; batch norm in training mode takes its batch statistics
            from their pass through the program.
        fold: whether to fold; without, node i is step i of the program.
    Raises: UnsupportedLayerError for a layer with settings that have no sound rule; ValueError if batch
        norm is in training mode and `clean` is None.
    """
    statistics = [number for number, step in enumerate(program.steps) if _needs_batch(step.source)]
    if statistics and clean is None:
        raise ValueError(f"{program.steps[statistics[0]].path} is in training mode and needs clean images; call eval()")
    values = [] if clean is None else [clean]
    nodes = []
    for number, step in enumerate(program.steps):
        taken = [values[source] for source in step.inputs] if statistics and number <= statistics[-1] else []
        operation = _operation(step, *taken[:1])
        nodes.append(Node(operation, step.inputs))
        if taken:
            values.append(operation.apply(*taken))
    return _folded(program.steps, nodes) if fold else nodes


@torch.no_grad()
def shapes_of(nodes: Sequence[Node], x: Tensor) -> list[torch.Size]:
    """The shapes of all values of a program that takes images like `x`, without the batch axis.

    Found with none of the images, which costs next to nothing.
    """
    values = [x[:0]]
    for node in nodes:
        values.append(node.operation.apply(*(values[number] for number in node.inputs)))
    return [value.shape[1:] for value in values]


def _operation(step: Step, value: Tensor | None = None) -> Operation:
    if isinstance(step.source, Operation):
        return step.source
    try:
        if isinstance(step.source, _BatchNorm) and value is not None and _needs_batch(step.source):
            return batch_scale(step.source, value)
        return reader(step.source)(step.source)
    except NoRule as reason:
        raise refusal(step.path, type(step.source).__name__, str(reason)) from None


def _needs_batch(source: nn.Module | Operation) -> bool:
    return isinstance(source, _BatchNorm) and source.training


# Folding ---------------------------------------------------------------------------------------


def _folded(steps: Sequence[Step], nodes: Sequence[Node]) -> list[Node]:
    """The same program, its values numbered anew, without the batch norms that a linear operation can take in."""
    readers = Counter(number for node in nodes for number in node.inputs)
    flat = vectors(nodes)
    found: list[Node] = []
    numbers = [0]
    for step, node in zip(steps, nodes, strict=True):
        source = node.inputs[0]
        before = found[numbers[source] - 1] if numbers[source] else None
        # Only images and vectors have their outputs along axis 1, which is the one that batch norm scales.
        image = before and isinstance(before.operation, Convolution) and isinstance(step.source, nn.BatchNorm2d)
        fits = (image or source in flat) and readers[source] == 1
        merged = _merged(before.operation, node.operation) if before and fits else None
        if before and merged:
            found[numbers[source] - 1] = Node(merged, before.inputs)
            numbers.append(numbers[source])
        else:
            found.append(Node(node.operation, tuple(numbers[number] for number in node.inputs)))
            numbers.append(len(found))
    return found


def _merged(before: Operation, scale: Operation) -> Operation | None:
    """One operation instead of a linear one and the scale behind it; None if there is none."""
    if not isinstance(scale, Scale) or scale.shift is None or not isinstance(before, Convolution | Dense):
        return None
    factor = scale.scale.view(-1, *[1] * (before.weight.ndim - 1))
    shift = scale.shift if before.bias is None else before.bias * scale.scale + scale.shift
    return replace(before, weight=before.weight * factor, bias=shift)


def vectors(nodes: Sequence[Node]) -> set[int]:
    """Numbers of the values that surely have the two axes (B, F), because they come out of a flatten."""
    found: set[int] = set()
    for number, node in enumerate(nodes, 1):
        if node.operation.makes_vectors or (node.operation.keeps_axes and found.issuperset(node.inputs)):
            found.add(number)
    return found
