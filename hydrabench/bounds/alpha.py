"""alpha-CROWN: CROWN whose slopes at unstable neurons are optimised, for each image and each margin.

CROWN's bound holds for any slopes in [0, 1] of the lines below unstable ReLUs, and of lines below and above any other
function of one number. Its gradient with respect to them comes from the same pass backward; Adam follows it, and the
best bound of all iterates is kept. Lines around other operations, such as max pooling, stay CROWN's.
Source: Xu et al. (2021), arXiv:2011.13824, section 3.1; defaults of alpha-beta-CROWN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Literal, cast

import torch
from torch import Tensor, nn

from hydrabench.bounds.backward import MEMORY
from hydrabench.bounds.ball import Ball, intersection
from hydrabench.bounds.box import Interval
from hydrabench.bounds.crown import lower_bounds
from hydrabench.bounds.intermediate import IntermediateBounds
from hydrabench.bounds.interval import Propagation
from hydrabench.bounds.neurons import (
    bounded_values,
    in_chunks,
    neuron_rows,
    progress,
    scattered,
    substituted,
    wanted_neurons,
)
from hydrabench.bounds.patches import Rows
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.program.operations import Elementwise, Relaxed
from hydrabench.bounds.program.program import Node
from hydrabench.bounds.relaxations import Lines
from hydrabench.bounds.slopes import Slopes, has_slopes
from hydrabench.bounds.specification import Problem, flat, pose, solved
from hydrabench.threat import Norm

TOGETHER = 4  # times as many neurons as CROWN takes at once: they share what a step costs however few they are
DECAY = 0.98  # of the learning rate, each iteration
KEPT = (2, 6)  # tensors that a search holds: of the size of each value, and of the unstable neurons of each layer


@dataclass(frozen=True)
class Search:
    """The settings of a search for slopes.

    slopes: "output" optimises the slopes of the margins' own pass and keeps CROWN's bounds of the neurons;
        "all" first does the same for the bounds of every unstable neuron, layer by layer: tighter, and many times as
        long.
    iterations: >= 1, of the margins and of each layer; the first has CROWN's slopes. learning_rate: Adam's, > 0,
        decaying by `DECAY`.
    time_limit: seconds for each image, > 0, or None. Images that are searched together share theirs.
    """

    slopes: Literal["output", "all"] = "output"
    iterations: int = 100
    learning_rate: float = 0.1
    time_limit: float | None = None


def alpha_crown_margins(
    network: nn.Module | Prepared,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    norm: Norm = "linf",
    search: Search,
    memory: int = MEMORY,
) -> Tensor:
    """Lower bounds of min over j != y of f_y - f_j over a ball around each image, by CROWN with optimised slopes.

    Every iterate is sound; of each difference of logits the best one is kept, so that these bounds are never below
    CROWN's. A difference that is proved positive is optimised no further. The bound of an image depends on no other
    image, up to rounding. With a time limit it depends on the machine and on the batch, and cannot be reproduced. The
    limit is looked at after each iteration; CROWN's own pass is always finished.

    Args: as for `ibp.interval_margins`, and `search`. Not in `torch.inference_mode`, which knows no gradients.
    Returns: (B,), in logit units, without gradients.
    Raises: what `ibp.interval_margins` raises.
    """
    with torch.no_grad():
        problem = pose(network, x, y, epsilon, norm=norm)
        return solved(problem, partial(_searched, search=search, memory=memory), memory=memory).min(1).values


def _searched(problem: Problem, *, search: Search, memory: int) -> Tensor:
    deadline = None if search.time_limit is None else perf_counter() + search.time_limit * len(problem.y)
    bounds = IntermediateBounds(problem.body, problem.ball)
    passed = bounds.propagate(tighten=True)
    lower = _crown_rows(problem, bounds, passed)
    images = (lower <= 0).any(1).nonzero().squeeze(1)
    before = {number: box.images(images) for number, box in passed.before.items()}
    left = problem.images(images)
    climb = _Climb(problem.body, left.ball, passed.shapes, before, search)
    if not len(images) or not any(climb.unstable()):
        return lower
    if search.slopes == "all":
        climb.tighten_neurons(deadline)
    found = lower[images].clone()
    image, function = (found <= 0).nonzero(as_tuple=True)
    rows, offset, best = Rows(left.rows[image, function], image), left.offset[image, function], found[image, function]
    for part in _parts(len(best), max(1, memory // climb.row_bytes())):
        share = (part.stop - part.start) / (len(best) - part.start)
        mine = Rows(rows.coefficients[part], rows.image[part])
        best[part] = climb.best(len(problem.body), mine, offset[part], best[part], _share(deadline, share))
    found[image, function] = best
    return lower.index_copy(0, images, found)


def _crown_rows(problem: Problem, bounds: IntermediateBounds, passed: Propagation) -> Tensor:
    if problem.ball.norm == "linf":
        return lower_bounds(problem.body, problem.ball.box, passed, problem.rows, problem.offset)
    return bounds.lower(len(problem.body), flat(problem.rows), problem.offset.flatten()).view(problem.offset.shape)


def _parts(count: int, most: int) -> Iterator[slice]:
    return (slice(start, min(start + most, count)) for start in range(0, count, most))


def _share(deadline: float | None, share: float) -> float | None:
    """The end of a part that may take `share` of the time that is left."""
    now = perf_counter()
    return None if deadline is None else now + share * (deadline - now)


@dataclass(eq=False)
class _Climb:
    """The search for slopes of functions of a program's values.

    before: bounds of the values in front of operations that are not linear, by number; all of the images of `ball`.
    shapes: of all values, batch axis included. fixed: lines that nobody chooses, by number of the node.
    """

    nodes: Sequence[Node]
    ball: Ball
    shapes: list[torch.Size]
    before: dict[int, Interval]
    search: Search
    fixed: dict[int, Lines] = field(default_factory=dict)

    def unstable(self) -> list[int]:
        """Return the number of neurons with slopes to choose, layer by layer: the most that an image has."""
        found = []
        for node in self.nodes:
            if has_slopes(node.operation):
                box = self.before[node.inputs[0]]
                (mask,) = cast(Relaxed, node.operation).undecided(box.lower(), box.upper())
                found.append(int(mask.flatten(1).sum(1).max()))
        return found

    def row_bytes(self) -> int:
        """Return what a search holds for one function of the last value."""
        every, sloped = KEPT
        entries = every * sum(shape[1:].numel() for shape in self.shapes) + sloped * sum(self.unstable())
        return entries * self.ball.x.element_size()

    def best(
        self,
        number: int,
        rows: Rows,
        offset: Tensor,
        best: Tensor,
        deadline: float | None,
        settled: Callable[[Tensor], Tensor] = lambda best: best > 0,
    ) -> Tensor:
        """The largest bounds that the search finds, none below `best`.

        Args:
            number: of the value that the functions are of. rows: no groups. offset: constants, (R,).
            best: bounds that are known, (R,). settled: which functions need no better ones, (R,).
        """
        best, left, rate = best.clone(), torch.arange(len(best), device=best.device), self.search.learning_rate
        slopes: dict[int, Slopes] = {}
        for step in range(1, self.search.iterations + 1):
            kept = ~settled(best)[left]
            if not kept.all():
                left, offset, rows = left[kept], offset[kept], _some(rows, kept)
                slopes = {position: found.some(kept) for position, found in slopes.items()}
            if not len(left) or (deadline is not None and perf_counter() >= deadline):
                break
            found = self._bounds(number, rows, offset, slopes)
            best[left] = torch.maximum(best[left], found.detach())  # NaN stays NaN, which an evaluator refuses
            if step < self.search.iterations and found.requires_grad:
                gradients = torch.autograd.grad(
                    found, [mine.chosen for mine in slopes.values()], torch.ones_like(found)
                )
                for mine, gradient in zip(slopes.values(), gradients, strict=True):
                    mine.climb(gradient, rate, step)
            rate *= DECAY
        return best

    @torch.enable_grad()
    @torch.enable_grad()
    def _bounds(self, number: int, rows: Rows, offset: Tensor, slopes: dict[int, Slopes]) -> Tensor:
        """Bounds of functions with these slopes, (R,), differentiable; a missing slope is filled in as CROWN has it."""
        found, linear, relaxed = substituted(self.nodes, number, rows, self.shapes, partial(self._relax, slopes))
        return self.ball.lowest(found, offset + linear + relaxed)

    def _relax(self, slopes: dict[int, Slopes], position: int, rows: Rows) -> tuple[Sequence[Rows], Tensor]:
        node = self.nodes[position - 1]
        boxes = [self.before[source] for source in node.inputs]
        if has_slopes(node.operation):
            if position not in slopes:
                slopes[position] = Slopes.of(cast(Elementwise, node.operation), rows, boxes[0])
            found, gain = slopes[position].passed(rows)
            return [found], gain
        if position not in self.fixed:
            operation = cast(Relaxed, node.operation)
            self.fixed[position] = operation.lines(*(end for box in boxes for end in (box.lower(), box.upper())))
        # Each function is taken for an image with one function, so that all are carried together.
        whole = rows.whole(self.shapes[position]).coefficients.unsqueeze(1)
        shapes = [torch.Size((len(whole), *box.center.shape[1:])) for box in boxes]
        parts, gain = self.fixed[position].images(rows.image).back(whole, shapes)
        return [Rows(part.squeeze(1), rows.image) for part in parts], gain.squeeze(1)

    def tighten_neurons(self, deadline: float | None) -> None:
        """Replace `before` by what the search finds for the unstable neurons, the first layer first."""
        layers = bounded_values(self.nodes, self.ball.known(self.nodes))
        for layer, number in enumerate(layers):
            wanted = self._wanted(number)
            if wanted.any():
                end = _share(deadline, 1 / (len(layers) + 1 - layer))
                self.before[number] = self._tightened(number, wanted, end)

    def _wanted(self, number: int) -> Tensor:
        """Mask of the neurons of a value that an operation which is not linear leaves unstable."""
        found = torch.zeros_like(self.before[number].center, dtype=torch.bool)
        for position, node in enumerate(self.nodes, start=1):
            if isinstance(node.operation, Relaxed) and number in node.inputs:
                masks = wanted_neurons(self.nodes, position, [self.before[source] for source in node.inputs])
                for source, mask in zip(node.inputs, masks, strict=True):
                    found = found | mask if source == number else found
        return found

    def _tightened(self, number: int, wanted: Tensor, deadline: float | None) -> Interval:
        box, left = self.before[number], int(wanted.sum())

        def work(image: Tensor, neuron: Tensor) -> Tensor:
            nonlocal left
            image, count = image.repeat(len(neuron) // len(image)), len(neuron)
            end = _share(deadline, min(1.0, count / max(left, 1)))
            left -= count
            return self._neuron_bounds(number, image, neuron, end)

        whole = max(shape[1:].numel() for shape in self.shapes[: number + 1])
        ends = in_chunks(wanted, -(-whole // TOGETHER), work, progress("alpha-crown", self.nodes, number))
        corners = zip((box.lower(), box.upper()), ends, strict=True)
        self.fixed.clear()  # lines that were drawn for the box before
        return intersection(box, Interval.between(*(scattered(wanted, old, new) for old, new in corners)))

    def _neuron_bounds(self, number: int, image: Tensor, neuron: Tensor, deadline: float | None) -> Tensor:
        """Lower and upper bounds of neurons, (2, R), as functions of an image each."""
        box, count = self.before[number], len(neuron)
        places = image * box.center[0].numel() + neuron
        known = torch.cat([box.lower().flatten()[places], -box.upper().flatten()[places]])
        source, rows, offset = neuron_rows(self.nodes, number, box.center, image.repeat(2), neuron.repeat(2))
        sign = torch.ones_like(known)
        sign[count:] = -1
        rows = replace(rows, coefficients=rows.coefficients * sign.view(-1, *[1] * (rows.coefficients.ndim - 1)))

        def settled(best: Tensor) -> Tensor:  # a neuron that is on for certain, or off, is passed exactly
            return (best.view(2, -1) > 0).any(0).repeat(2)

        best = self.best(source, rows, offset * sign, known, deadline, settled)
        return torch.stack([best[:count], -best[count:]])


def _some(rows: Rows, kept: Tensor) -> Rows:
    """Some of the functions, which are in no groups."""
    spot = None if rows.spot is None else rows.spot[kept]
    return replace(rows, coefficients=rows.coefficients[kept], image=rows.image[kept], spot=spot)
