"""One pass backward for many subproblems at once: slopes and multipliers are optimised, and the result rounded outward.

Source: Xu et al. (2021), arXiv:2011.13824, for the slopes; Wang et al. (2021), arXiv:2103.06624, for the multipliers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from hydrabench.bounds.backward import carried_back, linear
from hydrabench.bounds.exact.root import Root
from hydrabench.bounds.exact.splits import Constraints
from hydrabench.bounds.outward import down
from hydrabench.bounds.patches import Rows
from hydrabench.bounds.program.operations import Elementwise, Relaxed
from hydrabench.bounds.relaxations import Lines
from hydrabench.bounds.slopes import Slopes, has_slopes
from hydrabench.bounds.sound import weighed

DECAY = 0.98  # of the learning rates, each iteration
Observer = Callable[[int, Tensor], None]  # position of an operation that is not linear, coefficients of its result


@dataclass(frozen=True)
class Steps:
    """The settings of a search for slopes and multipliers.

    iterations: >= 1; the first has the slopes and multipliers that are given. slope_rate, multiplier_rate: Adam's
    learning rates, which decay by `DECAY`.
    """

    iterations: int = 20
    slope_rate: float = 0.1
    multiplier_rate: float = 0.05


@dataclass(eq=False)
class Walk:
    """Lower bounds of R subproblems.

    task: the function of each, (R,). lower, upper: corners in which the constraints hold, (R, size). start: slopes to
    start from, (R, 1 or 2, size), NaN for CROWN's; None for all CROWN's.
    """

    root: Root
    task: Tensor
    lower: Tensor
    upper: Tensor
    constraints: Constraints
    start: Tensor | None = None
    slopes: dict[int, Slopes] = field(default_factory=dict)
    fixed: dict[int, Lines] = field(default_factory=dict)

    @property
    def image(self) -> Tensor:
        """The image of each subproblem."""
        return self.root.image[self.task]

    def some(self, kept: Tensor) -> Walk:
        """The walk of some of the subproblems, by a mask, with what the search remembers of them."""
        places = kept.nonzero().squeeze(1)
        slopes = {position: mine.some(kept) for position, mine in self.slopes.items()}
        fixed = {position: lines.images(places) for position, lines in self.fixed.items()}
        parts = self.task[kept], self.lower[kept], self.upper[kept], self.constraints.some(kept), None
        return Walk(self.root, *parts, slopes, fixed)

    # The way back -------------------------------------------------------------------------------

    def bounds(self) -> Tensor:
        """Lower bounds, (R,), differentiable with respect to slopes and multipliers."""
        return self._lowest(*self.functions())

    def functions(self) -> tuple[Tensor, Tensor]:
        """The linear functions of the image that the bounds are the smallest values of, (R, entries) and (R,)."""
        rows, gains = self._carried(lambda _position, _rows: None)
        return rows.flatten(1), self.root.offset[self.task] + sum(gains)

    @torch.no_grad()
    def rounded(self, observer: Observer) -> tuple[Tensor, Tensor]:
        """Lower bounds that hold in exact arithmetic, (R,), and the coefficients of the image that they come from.

        Args: observer: called with the coefficients of every result of an operation that is not linear.
        """
        losses, image = self.root.losses, self.image
        lost = torch.zeros_like(self.root.offset[self.task])

        def weigh(position: int, rows: Tensor) -> None:
            nonlocal lost
            lost = lost + weighed(rows.unsqueeze(1), losses.of[position][image]).squeeze(1)
            observer(position, rows)

        rows, gains = self._carried(weigh)
        offset = self.root.offset[self.task]
        sizes = offset.abs() + sum(gain.abs() for gain in gains)
        part = self.root.places.parts[0]
        reach = torch.maximum(self.lower[:, part].abs(), self.upper[:, part].abs())
        reach = reach + self.root.ball.epsilon * (self.root.ball.norm != "linf")
        sizes = sizes + weighed(rows.flatten(1).unsqueeze(1), reach).squeeze(1)
        lost = (lost + losses.floor[image] + losses.share * sizes) * (1 + losses.share)
        return down(self._lowest(rows, offset + sum(gains)) - lost), rows

    def _carried(self, observer: Observer) -> tuple[Tensor, list[Tensor]]:
        """Coefficients of the image, (R, *image), and what constants gain, each (R,)."""
        nodes, places, gains = self.root.nodes, self.root.places, []

        def constrained(number: int, rows: Tensor) -> Tensor:
            rows, gain = self.constraints.carried(places, number, rows)
            if gain is not None:
                gains.append(gain)
            return rows

        def substitute(position: int, rows: Tensor, _waiting: dict[int, Tensor]) -> Sequence[Tensor | None]:
            """Add the multipliers of the result's constraints to (R, *result), and carry the sum through the node."""
            node = nodes[position - 1]
            rows = constrained(position, rows)
            observer(position, rows)
            found: Sequence[Tensor | None]
            gain: Tensor | None
            if isinstance(node.operation, Relaxed):
                found, gain = self._relaxed(position, rows)
            else:
                shapes = [torch.Size((len(rows), *places.shapes[source])) for source in node.inputs]
                found, gain = linear(node).back(rows, shapes), linear(node).gain(rows, shapes)
            if gain is not None:
                gains.append(gain)
            return found

        rows = self.root.rows[self.task]
        rows = carried_back(nodes, len(nodes), rows, substitute, lambda _, one, other: one + other)
        return constrained(0, rows), gains

    def _relaxed(self, position: int, rows: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        node, places = self.root.nodes[position - 1], self.root.places
        operation = cast(Relaxed, node.operation)
        if has_slopes(operation):
            if position not in self.slopes:
                self.slopes[position] = self._started(cast(Elementwise, operation), node.inputs[0], rows)
            found, gain = self.slopes[position].passed(self._in_rows(rows))
            return (found.coefficients,), gain
        if position not in self.fixed:
            self.fixed[position] = operation.lines(*places.corners(self.lower, self.upper, node))
        shapes = [torch.Size((len(rows), *places.shapes[source])) for source in node.inputs]
        parts, gained = self.fixed[position].back(rows.unsqueeze(1), shapes)
        return [part.squeeze(1) for part in parts], gained.squeeze(1)

    def _started(self, operation: Elementwise, number: int, rows: Tensor) -> Slopes:
        """Slopes around an operation: those to start from, where there are any, else CROWN's."""
        with torch.no_grad():
            found = Slopes.of(operation, self._in_rows(rows), self.root.places.box(self.lower, self.upper, number))
            if self.start is not None and number in self.root.places.sloped:
                given = self.start[:, : found.chosen.shape[1], self.root.places.parts[number]]
                given = given.gather(2, found.index.unsqueeze(1).expand_as(found.chosen))
                kept = given.isnan() | (found.spread == 0).unsqueeze(1)  # what is linear here has the line itself
                found.chosen = torch.where(kept, found.chosen, given)
        found.chosen.requires_grad_()
        return found

    def _in_rows(self, rows: Tensor) -> Rows:
        return Rows(rows.contiguous(), torch.arange(len(rows), device=rows.device))

    def _lowest(self, rows: Tensor, offset: Tensor) -> Tensor:
        """Smallest values of functions of the image, (R, *image), in the ball and between the corners: (R,)."""
        part, ball, flat = self.root.places.parts[0], self.root.ball, rows.flatten(1)
        lower, upper = self.lower[:, part], self.upper[:, part]
        found = offset + (flat * (upper + lower)).sum(1) / 2 - (flat.abs() * (upper - lower)).sum(1) / 2
        if ball.norm == "linf":
            return found
        at_x = offset + (flat * ball.x.flatten(1)[self.image]).sum(1)
        return torch.maximum(found, at_x - ball.epsilon * flat.norm(dim=1))

    # The search ---------------------------------------------------------------------------------

    def improve(self, steps: Steps, known: Tensor) -> Tensor:
        """Optimise slopes and multipliers and keep the best; returns bounds, (R,), none below `known`.

        A subproblem is done when its bound is above 0. What becomes of it does not depend on the others, but for
        rounding.
        """
        best, walk = known.clone(), self
        left = torch.arange(len(best), device=best.device)
        multipliers = self.constraints.multipliers.clone()
        chosen: dict[int, Tensor] = {}
        for step in range(1, steps.iterations + 1):
            walk.constraints.multipliers.requires_grad_()
            with torch.enable_grad():
                found = walk.bounds()
            if not chosen:
                chosen = {position: mine.chosen.detach().clone() for position, mine in self.slopes.items()}
            better = (found.detach() > best[left]) & ~(best[left] > 0)
            into = left[better]
            best[into] = found.detach()[better]
            multipliers[into] = walk.constraints.multipliers.detach()[better]
            for position, mine in walk.slopes.items():
                chosen[position][into] = mine.chosen.detach()[better]
            if step == steps.iterations or not found.requires_grad:
                break
            walk.climb(found, steps, step)
            kept = ~(best[left] > 0)
            if not kept.any():
                break
            if kept.sum() < 0.75 * len(kept):
                walk, left = walk.some(kept), left[kept]
        self.constraints.multipliers = multipliers
        for position, mine in self.slopes.items():
            mine.chosen = chosen[position]
        return best

    def climb(self, found: Tensor, steps: Steps, step: int) -> None:
        """Take one step of Adam up the sum of the bounds."""
        leaves = [mine.chosen for mine in self.slopes.values()]
        gradients = torch.autograd.grad(
            found, [*leaves, self.constraints.multipliers], torch.ones_like(found), allow_unused=True
        )
        decay = DECAY ** (step - 1)
        for mine, gradient in zip(self.slopes.values(), gradients, strict=False):
            if gradient is not None:
                mine.climb(gradient, steps.slope_rate * decay, step)
        if gradients[-1] is not None:
            self.constraints.climb(gradients[-1], steps.multiplier_rate * decay, step)

    def dense(self) -> Tensor:
        """The slopes of all places, (R, 1 or 2, size), NaN where there are none."""
        lines = max((mine.chosen.shape[1] for mine in self.slopes.values()), default=1)
        found = self.lower.new_full((len(self.lower), lines, self.root.places.size), torch.nan)
        for position, mine in self.slopes.items():
            number = self.root.nodes[position - 1].inputs[0]
            if number not in self.root.places.sloped:
                continue
            part = self.root.places.parts[number]
            index = mine.index.expand(len(found), -1).unsqueeze(1).expand_as(mine.chosen)
            values = mine.chosen.detach().masked_fill(~(mine.listed > 0).unsqueeze(1), torch.nan)
            found[:, : values.shape[1], part] = found[:, : values.shape[1], part].scatter(2, index, values)
        return found
