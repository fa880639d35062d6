"""Passes backward for single neurons: which neurons get one, in what chunks, and how their rows are carried."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hydrabench.bounds.backward import carried_back, linear
from hydrabench.bounds.box import Interval
from hydrabench.bounds.patches import Rows, Window, chunk_length, single_pixels, unit_rows
from hydrabench.bounds.program.operations import Operation, Relaxed
from hydrabench.bounds.program.program import Node
from hydrabench.bounds.progress import Moment, tell

# (position of a node that is not linear, rows of its result) -> rows of each value it takes, what constants gain
Relaxation = Callable[[int, Rows], tuple[Sequence[Rows], Tensor]]


def substituted(
    nodes: Sequence[Node], number: int, rows: Rows, shapes: Sequence[torch.Size], relax: Relaxation
) -> tuple[Rows, Tensor | float, Tensor | float]:
    """Express functions of value `number` by the input.

    Args:
        shapes: of all values up to `number`. relax: what to do at an operation that is not linear.
    Returns: the functions of the input; what their constants gain from the linear operations, and from `relax`, (R,).
    """
    gained: dict[bool, Tensor | float] = {True: 0.0, False: 0.0}

    def substitute(position: int, rows: Rows, _waiting: dict[int, Rows]) -> Sequence[Rows | None]:
        node = nodes[position - 1]
        is_relaxed = isinstance(node.operation, Relaxed)
        found: Sequence[Rows | None]
        gain: Tensor | None
        if is_relaxed:
            found, gain = relax(position, rows)
        else:
            taken = [shapes[source] for source in node.inputs]
            found, gain = linear(node).back_patches(rows, taken, shapes[position])
        gained[is_relaxed] = gained[is_relaxed] if gain is None else gained[is_relaxed] + gain
        return found

    rows = carried_back(nodes, number, rows, substitute, lambda source, one, other: one.plus(other, shapes[source]))
    return rows, gained[False], gained[True]


def neuron_rows(
    nodes: Sequence[Node], number: int, value: Tensor, image: Tensor, neuron: Tensor
) -> tuple[int, Rows, Tensor]:
    """The functions that pick single neurons of a value, or what they are of the value before it.

    Args:
        value: anything of its shape. image, neuron: which ones, (G,) and (S · G,), as for `unit_rows`.
    Returns: the number of the value that the rows are functions of, the rows, and their constants, (R,).
    """
    producer = nodes[number - 1]
    matrix = producer.operation.matrix if value.ndim == 2 else None
    if matrix is not None:
        weight, bias = matrix
        constants = weight.new_zeros(len(neuron)) if bias is None else bias.index_select(0, neuron)
        return producer.inputs[0], Rows(weight.index_select(0, neuron), image), constants
    return number, unit_rows(value.shape, image, neuron, value), value.new_zeros(len(neuron))


def in_chunks(
    wanted: Tensor,
    largest: int,
    work: Callable[[Tensor, Tensor], Tensor],
    done: Callable[[float], None],
) -> Tensor:
    """Do `work` for the neurons that are `wanted`, so many at a time that their rows fit.

    Args:
        wanted: mask of a value, (B, ...), of one neuron at least. largest: coefficients that a row has of any value.
        work: from images and neurons, (G,) and (S · G,), as for `unit_rows`, to results (..., S · G). With gradients it
            is done again in the pass backward if there are several chunks, since their rows would not fit at once.
        done: called after each chunk with the share of the neurons that have results, in (0, 1].
    Returns: (..., how many are wanted), in the order of the mask.
    """
    chunks = grouped(wanted, chunk_length(largest, wanted.device))
    repeat = torch.is_grad_enabled() and len(chunks) > 1
    size, parts, places = wanted[0].numel(), [], []
    count, total = 0, int(wanted.sum())
    for members, known in chunks:
        picks = members[0] // size, members.flatten() % size
        again: Any = checkpoint(work, *picks, use_reentrant=False, preserve_rng_state=False) if repeat else work(*picks)
        chosen = known.flatten().nonzero().squeeze(1)
        parts.append(again.index_select(-1, chosen))
        places.append(members.flatten()[chosen])
        count += len(chosen)
        done(count / total)
    return torch.cat(parts, dim=-1).index_select(-1, torch.cat(places).argsort())


def grouped(wanted: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """Cut the neurons that are `wanted` into chunks of equally large groups, each at one position of one image.

    What all channels of a position see of earlier values is the same. Positions come in the order of how many of their
    neurons are wanted, so that few places of a chunk are filled up with others. What fits one chunk is not grouped: one
    chunk of single neurons costs less than groups with places that nobody wants.

    Args: wanted: mask of a value, (B, C, H, W), or (B, ...), where all neurons of an image are at one position.
        length: neurons of a chunk, at most.
    Returns: for each chunk the numbers of its neurons in the flattened mask, (S, G), and which of them are wanted.
    """
    if int(wanted.sum()) <= length:
        every = wanted.flatten().nonzero().T
        return [(every, torch.ones_like(every, dtype=torch.bool))]
    table = wanted.flatten(2).transpose(1, 2) if wanted.ndim == 4 else wanted.flatten(1).unsqueeze(1)
    numbers = torch.arange(wanted.numel(), device=wanted.device).view_as(wanted)
    numbers = numbers.flatten(2).transpose(1, 2) if wanted.ndim == 4 else numbers.flatten(1).unsqueeze(1)
    known, order = table.flatten(0, 1).byte().sort(dim=1, descending=True, stable=True)
    counts, groups = known.sum(1).sort(descending=True, stable=True)
    order = numbers.flatten(0, 1).gather(1, order)
    chunks, totals = [], counts.tolist()
    most = -(-max(totals) // -(-max(totals) // length))  # the large groups in equal parts
    for done in range(0, max(totals), most):
        start = 0
        while start < len(totals) and totals[start] > done:
            members = slice(done, min(totals[start], done + most))
            picked = groups[start : start + max(1, length // (members.stop - done))]
            picked = picked[: sum(total > done for total in totals[start : start + len(picked)])]
            chunks.append((order[picked, members].T, known[picked, members].T > 0))
            start += len(picked)
    return chunks


def entries(nodes: Sequence[Node], shapes: Sequence[torch.Size], number: int) -> list[tuple[int, int]]:
    """Return how many coefficients a row of one neuron of value `number` has at most on its way back to the input.

    Args: shapes: of all values up to `number`, without the batch axis.
    Returns: the numbers of the values that it passes, from `number` down to 0, and the coefficients at each.
    """
    shape, found = shapes[number], []
    waiting: dict[int, Window | None] = {number: single_pixels(shape[1:]) if len(shape) == 3 else None}
    for position in range(number, -1, -1):
        if position not in waiting:
            continue
        window = waiting.pop(position)
        found.append(
            (position, shapes[position].numel() if window is None else shapes[position][0] * prod(window.size))
        )
        for source in nodes[position - 1].inputs if position else ():
            part = _behind(nodes[position - 1].operation, window, shapes[source])
            waiting[source] = _joined(waiting[source], part) if source in waiting else part
    return found


def largest(nodes: Sequence[Node], shapes: Sequence[torch.Size], number: int) -> int:
    """Return the largest number of coefficients that a row of a neuron of value `number` has of any value.

    Args: shapes: as for `entries`, but with the batch axis.
    """
    return max(count for _, count in entries(nodes, [shape[1:] for shape in shapes], number))


def _behind(operation: Operation, window: Window | None, shape: torch.Size) -> Window | None:
    """The window in what an operation takes, or None if rows are whole there, as in `back_patches`."""
    grown = None if window is None else operation.window_behind(window)
    return None if grown is None or prod(grown.size) >= prod(shape[1:]) else grown


def _joined(one: Window | None, other: Window | None) -> Window | None:
    return one.joined(other) if one and other and one.stride == other.stride else None


def relaxed_values(nodes: Sequence[Node]) -> list[int]:
    """Numbers of the values that operations take which are not linear, in their order."""
    return list(dict.fromkeys(n for node in nodes if isinstance(node.operation, Relaxed) for n in node.inputs))


def bounded_values(nodes: Sequence[Node], known: Container[int] = ()) -> list[int]:
    """Those of `relaxed_values` whose neurons get passes of their own: intervals of the others are as tight.

    Args: known: the values whose bounds are exact, if there are any, in place of `exact_values`.
    """
    exact = known or exact_values(nodes)
    return [number for number in relaxed_values(nodes) if number not in exact and not _comes_from_a_box(nodes, number)]


def _comes_from_a_box(nodes: Sequence[Node], number: int) -> bool:
    """Return whether a value is the result of an operation that a pass backward says no more of than its box does."""
    operation = nodes[number - 1].operation if number else None
    return isinstance(operation, Relaxed) and operation.tight


def exact_values(nodes: Sequence[Node]) -> set[int]:
    """The values whose interval bounds are as tight as symbolic ones: no pixel reaches an entry twice."""
    untouched, exact = {0}, {0}
    for number, node in enumerate(nodes, start=1):
        source = node.inputs[0]
        if isinstance(node.operation, Relaxed) or len(node.inputs) > 1 or source not in exact:
            continue
        if linear(node).moves:
            exact.add(number)
            untouched |= {number} if source in untouched else set()
        elif source in untouched:
            exact.add(number)
    return exact


def progress(method: str, nodes: Sequence[Node], number: int) -> Callable[[float], None]:
    """Return what tells a watcher which share of the neurons of value `number` has been bounded."""
    sources = relaxed_values(nodes)
    return lambda share: tell(Moment(method, sources.index(number) + 1, len(sources), share))


def scattered(wanted: Tensor, into: Tensor, values: Tensor) -> Tensor:
    """Put `values` in the `wanted` places of a tensor of the same shape."""
    places = wanted.flatten().nonzero().squeeze(1)
    return into.flatten().scatter(0, places, values).view_as(into)


def wanted_neurons(nodes: Sequence[Node], number: int, boxes: Sequence[Interval]) -> list[Tensor]:
    """Masks of the neurons whose bounds matter in front of node `number`, which is not linear: one for each value.

    Those that are undecided, and that a weight other than 0 reads.

    Args: boxes: known bounds of the values that the node takes, (B, ...).
    """
    node, masks = nodes[number - 1], []
    assert isinstance(node.operation, Relaxed), "linear operations need no bounds"
    corners = (corner for box in boxes for corner in (box.lower(), box.upper()))
    for source, found in zip(node.inputs, node.operation.undecided(*corners), strict=True):
        read = heeded(nodes, source, found[0].numel())
        masks.append(found if read is None else found & read.view(found.shape[1:]))
    return masks


def heeded(nodes: Sequence[Node], number: int, entries: int) -> Tensor | None:
    """Return which entries of a value linear layers read by weights other than 0, directly or not: (entries,).

    Of pruned layers they leave many out: of 100 neurons at 99 % sparsity none reads an entry in 37 % of the cases.
    Returns: None if something else reads the value, or nothing does.
    """
    masks = []
    for position, node in enumerate(nodes, start=1):
        if number in node.inputs:
            through = node.operation.same_places
            found = heeded(nodes, position, entries) if through else node.operation.columns()
            if found is None or len(found) != entries:
                return None
            masks.append(found)
    return torch.stack(masks).any(0) if masks else None
