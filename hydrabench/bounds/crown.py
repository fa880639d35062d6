"""CROWN-IBP and CROWN: margins bounded by linear functions, carried from the outputs back to the image.

crown-ibp: one pass backward over interval bounds. crown: a pass backward for each unstable neuron, too. In an L2 ball
both take `intermediate`'s bounds. Here is the pass with dense rows of coefficients.
Source: Zhang et al. (2018), arXiv:1811.00866, theorem 3.2; Zhang et al. (2019), arXiv:1906.06316, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hydrabench.bounds.backward import LIVE, MEMORY, Functions, Run, carried_back, linear
from hydrabench.bounds.box import Interval
from hydrabench.bounds.intermediate import IntermediateBounds
from hydrabench.bounds.interval import Propagation, concretize, propagate
from hydrabench.bounds.kernels import BLOCK
from hydrabench.bounds.patches import Rows
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.program.operations import Elementwise, Linear, Relaxed
from hydrabench.bounds.program.program import Node
from hydrabench.bounds.specification import Problem, flat, pose, solved
from hydrabench.threat import Norm


def crown_ibp_margins(
    network: nn.Module | Prepared,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    norm: Norm = "linf",
    memory: int = MEMORY,
    only_open: bool = False,
) -> Tensor:
    """Like `ibp.interval_margins`, by one CROWN pass backward with interval bounds before unstable neurons.

    Not always above the interval margins: both are sound, and a caller may take the larger one.

    Args:
        only_open: take the interval bound of f_y - f_j where it is positive, the larger of both elsewhere,
            and leave out the pass backward for every margin that is proved already.
    Source: Zhang et al. (2019), arXiv:1906.06316, section 3.
    """
    method = partial(_open_rows if only_open else crown_ibp_rows, memory=memory)
    return solved(pose(network, x, y, epsilon, norm=norm), method, memory=memory).min(1).values


def crown_margins(
    network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: float, *, norm: Norm = "linf", memory: int = MEMORY
) -> Tensor:
    """Like `ibp.interval_margins`, by CROWN for every unstable neuron as for the margins.

    Source: Zhang et al. (2018), arXiv:1811.00866.
    """
    return solved(pose(network, x, y, epsilon, norm=norm), crown_rows, memory=memory).min(1).values


def crown_ibp_rows(problem: Problem, *, memory: int = MEMORY) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by one pass backward over the bounds of `ibp.interval_rows`.

    Source: Zhang et al. (2019), arXiv:1906.06316, section 3.
    """
    if problem.ball.norm != "linf":
        return _crown(problem, tighten=False)
    passed = propagate(problem.body, problem.ball.box, keep=True)
    return lower_bounds(problem.body, problem.ball.box, passed, problem.rows, problem.offset, memory=memory)


def crown_rows(problem: Problem) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by CROWN for every undecided neuron as for the margins.

    Source: Zhang et al. (2018), arXiv:1811.00866.
    """
    return _crown(problem, tighten=True)


def _crown(problem: Problem, *, tighten: bool) -> Tensor:
    bounds = IntermediateBounds(problem.body, problem.ball)
    passed = bounds.propagate(tighten=tighten)
    if problem.ball.norm == "linf":
        return lower_bounds(problem.body, problem.ball.box, passed, problem.rows, problem.offset)
    return bounds.lower(len(problem.body), flat(problem.rows), problem.offset.flatten()).view(problem.offset.shape)


def _open_rows(problem: Problem, *, memory: int) -> Tensor:
    if problem.ball.norm != "linf":
        return _open_rows_of_ball(problem)
    box = problem.ball.box
    passed = propagate(problem.body, box, keep=True)  # one pass of intervals serves both
    interval = concretize(problem.rows, problem.offset, passed.output)
    offset = problem.offset.masked_fill(interval > 0, -torch.inf)
    return torch.maximum(interval, lower_bounds(problem.body, box, passed, problem.rows, offset, memory=memory))


def _open_rows_of_ball(problem: Problem) -> Tensor:
    if not any(isinstance(node.operation, Relaxed) for node in problem.body):
        return crown_ibp_rows(problem)  # exact already
    bounds = IntermediateBounds(problem.body, problem.ball)
    interval = concretize(problem.rows, problem.offset, bounds.propagate(tighten=False).output)
    is_open = ~(interval > 0)  # NaN is open
    if not is_open.any():
        return interval
    rows = Rows(problem.rows[is_open], is_open.nonzero()[:, 0])
    found = bounds.lower(len(problem.body), rows, problem.offset[is_open])
    return interval.masked_scatter(is_open, torch.maximum(interval[is_open], found))


# The pass ----------------------------------------------------------------------------------------


def lower_bounds(
    nodes: Sequence[Node], box: Interval, passed: Propagation, rows: Tensor, offset: Tensor, *, memory: int = MEMORY
) -> Tensor:
    """Lower bounds of linear functions of a program's last value, over a box of inputs.

    Args:
        nodes: what `program.read` returned, or the first of them.
        box: bounds of the input, value 0.
        passed: what `interval.propagate` returned for these nodes and this box, with `keep`.
        rows: coefficients of the functions, (B, S, *shape of the last value).
        offset: their constants, (B, S). A function with -inf here, whose bound is not wanted, costs nothing.
        memory: bytes to keep to, as far as one function does; the functions are taken in parts. Gradients
            need everything at once and are not bounded by this.
    Returns: (B, S); -inf where the offset is, NaN where inputs or weights are.
    Source: Zhang et al. (2018), arXiv:1811.00866, theorem 3.2.
    """
    largest = max(shape[1:].numel() for shape in passed.shapes[: len(nodes) + 1])
    most = max(1, memory // (LIVE * largest * rows.element_size()))
    wanted = offset != -torch.inf
    if wanted.all() and offset.numel():
        functions = Functions(rows.flatten(0, 1), offset.flatten(), [offset.shape[1]] * len(offset))
        return _Pass(nodes, box, passed).lower(functions, most=most).view(offset.shape)
    counted = wanted.sum(1)
    # Images with equally many functions lie side by side, so that they are treated together.
    order = counted.argsort(descending=True, stable=True)[: int(wanted.any(1).sum())]
    place, function = wanted[order].nonzero(as_tuple=True)
    if len(place) == 0:
        return offset
    picked = order[place], function
    functions = Functions(rows[picked], offset[picked], counted[order].tolist())
    found = _Pass(nodes, box.images(order), passed.images(order)).lower(functions, most=most)
    return offset.index_put(picked, found)


@dataclass(frozen=True, eq=False)
class _Pass:
    """One way back through a program with dense rows, for images whose boxes are known."""

    nodes: Sequence[Node]
    box: Interval
    passed: Propagation

    def lower(self, functions: Functions, *, most: int) -> Tensor:
        """Lower bounds, (R,), so many functions at a time."""
        return _joined([self._part(*part) for part in functions.parts(most)])

    def _part(self, rows: Tensor, offset: Tensor, runs: list[Run]) -> Tensor:
        given, gained = _memory(rows), [offset]

        def substitute(position: int, rows: Tensor, waiting: dict[int, Tensor]) -> Sequence[Tensor | None]:
            """Carry (R, *result) through one node to what it takes, and add up what the constants gain."""
            node = self.nodes[position - 1]
            shapes = [self.passed.shapes[source] for source in node.inputs]
            found: Sequence[Tensor | None]
            gain: Tensor | None
            if isinstance(node.operation, Relaxed):
                # Coefficients that somebody else reads, too, are never written over.
                spent = _memory(rows) not in {given, *map(_memory, waiting.values())}
                found, gain = self._relaxed(node, node.operation, rows, runs, spent=spent)
            else:
                found, gain = linear(node).back(rows, shapes), linear(node).gain(rows, shapes)
            if gain is not None:
                gained.append(gained.pop() + gain)
            return found

        stop = int(_starts_linearly(self.nodes))
        rows = carried_back(self.nodes, len(self.nodes), rows, substitute, lambda _, one, other: one + other, stop=stop)
        if not stop:
            return _concretized(rows, gained.pop(), self.box, runs)
        gain = linear(self.nodes[0]).gain(rows, [self.box.center.shape])
        rows, box = linear(self.nodes[0]).back_to_box(rows, self.box)
        return _concretized(rows, gained.pop() if gain is None else gained.pop() + gain, box, runs)

    def _relaxed(
        self, node: Node, operation: Relaxed, rows: Tensor, runs: list[Run], *, spent: bool
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Carry (R, *result) along the lines around an operation that is not linear."""
        boxes = [self.passed.before[source] for source in node.inputs]
        if isinstance(operation, Elementwise) and not torch.is_grad_enabled():
            return _by_blocks(operation, rows, boxes[0], runs, spent=spent)
        parts = []
        for run in runs:
            here = [box.images(run.images) for box in boxes]
            lines = operation.lines(*(corner for box in here for corner in (box.lower(), box.upper())))
            found, gain = lines.back(run.of(rows), [box.center.shape for box in here])
            parts.append((gain.flatten(), *(part.flatten(0, 1) for part in found)))
        gain, *coefficients = (_joined([*pieces]) for pieces in zip(*parts, strict=True))
        return coefficients, gain


def _by_blocks(
    operation: Elementwise, rows: Tensor, box: Interval, runs: list[Run], *, spent: bool
) -> tuple[Sequence[Tensor], Tensor]:
    """The same for few images at a time, which stay in a CPU's cache, written over `rows` if they are `spent`."""
    on_cpu = rows.device.type == "cpu"
    layout = torch.channels_last if rows.ndim == 4 and on_cpu else torch.contiguous_format
    own = spent and rows.is_contiguous(memory_format=layout)
    found = rows if own else torch.empty_like(rows, memory_format=layout)
    most = BLOCK // (rows[0].numel() * rows.element_size()) if on_cpu else len(rows)
    gains = []
    for block in (block for run in runs for block in run.cut(most)):
        part, here = block.of(found), box.images(block.images)
        if found is not rows:
            part.copy_(block.of(rows))
        _, gain = operation.lines(here.lower(), here.upper()).back(part, [here.center.shape], spent=True)
        gains.append(gain.flatten())
    return (found,), torch.cat(gains)


def _starts_linearly(nodes: Sequence[Node]) -> bool:
    """Return whether a linear operation of one value reads the input, and nothing else does."""
    readers = [number for number, node in enumerate(nodes, start=1) if 0 in node.inputs]
    return readers == [1] and nodes[0].inputs == (0,) and isinstance(nodes[0].operation, Linear)


def _memory(rows: Tensor) -> int:
    """Return where coefficients lie; two that have this in common may be views of the same."""
    return rows.untyped_storage().data_ptr()


def _concretized(rows: Tensor, offset: Tensor, box: Interval, runs: list[Run]) -> Tensor:
    return _joined([concretize(run.of(rows), run.of(offset), box.images(run.images)).flatten() for run in runs])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
