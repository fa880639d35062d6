"""Bounds of functions over whole balls, before anything is cut."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from hydrabench.bounds.ball import Ball
from hydrabench.bounds.box import Interval
from hydrabench.bounds.exact.places import Places
from hydrabench.bounds.exact.rounding import Losses, losses
from hydrabench.bounds.intermediate import IntermediateBounds
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.program.program import Node, shapes_of
from hydrabench.bounds.rounding import MeasuredNode, measured, value_errors, with_terms
from hydrabench.bounds.sound import as_stored_in_float64
from hydrabench.bounds.specification import Problem, specification
from hydrabench.threat import Norm


@dataclass(frozen=True, eq=False, kw_only=True)
class BallPart(Ball):
    """The points of a ball that lie between two corners, (B, ...)."""

    low: Tensor
    high: Tensor

    @cached_property
    def box(self) -> Interval:
        """The box between the corners."""
        return Interval.between(self.low, self.high)


@dataclass(frozen=True, eq=False)
class Root:
    """T functions of the last value of a program, over balls around B images, in float64.

    lower, upper: vectors of corners of every value that can be cut, (B, size), which hold in spite of rounding.
    errors: how far outside rounding may place the corners of CROWN's bounds, (B, size). losses: of passes backward.
    image: of each function, (T,). rows, offset: the functions, (T, *value) and (T,).
    """

    nodes: list[MeasuredNode]
    places: Places
    ball: Ball
    lower: Tensor
    upper: Tensor
    errors: Tensor
    losses: Losses
    image: Tensor
    rows: Tensor
    offset: Tensor

    def undecided(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Mask of the places where lines are not exact between corners, (R, size)."""
        found = torch.zeros_like(lower, dtype=torch.bool)
        for _, node, operation in self.places.relaxed:
            masks = operation.undecided(*self.places.corners(lower, upper, node))
            for source, mask in zip(node.inputs, masks, strict=True):
                found[:, self.places.parts[source]] |= mask.flatten(1)
        return found

    @cached_property
    def owners(self) -> list[int]:
        """The image of each function, as numbers: reading them one by one from a GPU would take long."""
        owners: list[int] = self.image.tolist()
        return owners

    @cached_property
    def free(self) -> list[Tensor]:
        """The places of each image where lines are not exact on the whole ball."""
        return [mask.nonzero().squeeze(1) for mask in self.undecided(self.lower, self.upper)]

    def refreshed(self, image: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return corners by CROWN inside of corners that are known, (R, size), of subproblems of images, (R,).

        Where a lower corner comes out above its upper one, there is nothing in between.
        """
        places, inputs = self.places, self.places.box(lower, upper, 0)
        ball = BallPart(self.ball.x[image], self.ball.epsilon, self.ball.norm, low=inputs.low, high=inputs.high)
        bounds = IntermediateBounds(self.nodes, ball)
        numbers = places.numbers[1:]
        bounds.propagate(tighten=True, within={number: places.box(lower, upper, number) for number in numbers})
        corners = (
            places.vector({0: first} | {number: corner(bounds.values[number]) for number in numbers})
            for corner, first in ((Interval.lower, inputs.low), (Interval.upper, inputs.high))
        )
        low, high = corners
        return torch.maximum(lower, low - self.errors[image]), torch.minimum(upper, high + self.errors[image])

    def values(self, points: Tensor, task: Tensor) -> Tensor:
        """Return what functions are at points of the input, (P, *value) and (P,): (P,)."""
        values = [points]
        for node in self.nodes:
            values.append(node.operation.apply(*(values[source] for source in node.inputs)))
        return self.offset[task] + (self.rows[task] * values[-1]).flatten(1).sum(1)


@torch.no_grad()
def root_of(problem: Problem) -> Root:
    """Bound every value of a problem in float64 by CROWN and prepare each of its functions.

    The radius is what `problem.ball` has; a caller rounds it up.
    """
    shapes = problem.shapes
    nodes = with_terms(problem.body, shapes)
    bounds = IntermediateBounds(nodes, problem.ball)
    bounds.propagate(tighten=True)
    errors = value_errors(nodes, problem.ball.x, problem.ball.epsilon, kind="crown")
    values = {number: _widened(bounds.values[number], errors[number]) for number in range(len(shapes))}
    places = Places(nodes, shapes)
    lower, upper = (
        places.vector({number: corner(values[number]) for number in places.numbers})
        for corner in (Interval.lower, Interval.upper)
    )
    count, each = problem.offset.shape
    image = torch.arange(count, device=lower.device).repeat_interleave(each)
    functions = problem.rows.flatten(0, 1), problem.offset.flatten()
    off = places.vector({number: errors[number] for number in places.numbers})
    return Root(nodes, places, problem.ball, lower, upper, off, losses(nodes, values), image, *functions)


def _widened(box: Interval, error: Tensor) -> Interval:
    return replace(box, width=box.width + 2 * error)


def pose_as_stored(network: Prepared, x: Tensor, y: Tensor, epsilon: float, norm: Norm) -> Problem:
    """Pose the margins of a network exactly as it is stored: nothing is folded, left out or merged.

    Args: x: images, float64. epsilon: radius, rounded up. The others as for `specification.pose`.
    """
    wide = as_stored_in_float64(network)
    module = wide if isinstance(wide, nn.Module) else wide.network
    nodes: list[Node] = [*measured(wide, x)]
    shapes = shapes_of(nodes, x)
    functions = specification(None, y, x.new_empty(1).expand(0, *shapes[-1]))
    return Problem(module, nodes, shapes, Ball(x, epsilon, norm), y, *functions)
