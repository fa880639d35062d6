"""Constraints that make a subproblem of a ball, and the multipliers that carry them into its bound.

A constraint keeps the value z at a place on one side of a point p: s (z - p) >= 0, with s = 1 or -1. For any
multiplier b >= 0 a linear function A · z is, where the constraint holds, at least

    A · z - b s (z - p).

Source: Wang et al. (2021), arXiv:2103.06624, theorem 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrabench.bounds.exact.places import Places
from hydrabench.bounds.slopes import ascended


@dataclass(frozen=True, eq=False)
class Subproblem:
    """A function of one image over a part of its ball.

    task: number of the function. lower: bound of it. places, sides, points: of its constraints, (D,). multipliers: of
    these, (D,). slopes: of the lines around the neurons that are unstable on the whole ball, float32, (1 or 2, U).
    candidates: places that are worth a cut, the best first, and where to cut them: (C,). serial: its number among those
    of its image; the first is 0.
    """

    task: int
    lower: float
    places: NDArray[np.int32]
    sides: NDArray[np.int8]
    points: NDArray[np.float64]
    multipliers: NDArray[np.float64]
    slopes: NDArray[np.float32] | None = None
    candidates: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    cuts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    serial: int = 0

    def cut(self, place: int, point: float, lower: Sequence[float]) -> tuple[Subproblem, Subproblem]:
        """Return the part where the value at a place is at most `point`, and the one where it is at least that.

        Args: lower: known bounds of both.
        """

        def part(side: int, bound: float) -> Subproblem:
            return replace(
                self,
                lower=max(self.lower, bound),
                places=np.append(self.places, np.int32(place)),
                sides=np.append(self.sides, np.int8(side)),
                points=np.append(self.points, point),
                multipliers=np.append(self.multipliers, 0.0),
            )

        return part(-1, lower[0]), part(1, lower[1])


@dataclass(eq=False)
class Constraints:
    """The constraints of R subproblems, D at most for each; side 0 where there is none.

    places: (R, D), int64. sides, points, multipliers: (R, D). mean, square: Adam's averages.
    """

    places: Tensor
    sides: Tensor
    points: Tensor
    multipliers: Tensor
    mean: Tensor = field(init=False)
    square: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.square = torch.zeros_like(self.multipliers), torch.zeros_like(self.multipliers)

    @classmethod
    def of(cls, subproblems: Sequence[Subproblem], like: Tensor) -> Constraints:
        """Return the constraints of some subproblems, on the device and of the type of `like`."""
        most = max((len(each.places) for each in subproblems), default=0)
        table = np.zeros((4, len(subproblems), most))
        for row, each in enumerate(subproblems):
            table[:, row, : len(each.places)] = each.places, each.sides, each.points, each.multipliers
        places, *rest = torch.from_numpy(table).to(like.device)
        return cls(places.long(), *(part.to(like.dtype) for part in rest))

    def some(self, kept: Tensor) -> Constraints:
        """Return the constraints of some subproblems, with what Adam remembers of them."""
        found = Constraints(*(part[kept] for part in (self.places, self.sides, self.points, self.multipliers.detach())))
        found.mean, found.square = self.mean[kept], self.square[kept]
        return found

    def narrowed(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors of corners, (R, size), in which the constraints hold; never empty."""
        at_least = self.points.masked_fill(self.sides <= 0, -torch.inf)
        at_most = self.points.masked_fill(self.sides >= 0, torch.inf)
        lower = lower.scatter_reduce(1, self.places, at_least, "amax")
        upper = upper.scatter_reduce(1, self.places, at_most, "amin")
        return lower, torch.maximum(lower, upper)

    def carried(self, places: Places, number: int, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Subtract what constraints of a value say from functions of it, (R, *value); returns also what constants gain.

        Differentiable with respect to the multipliers.
        """
        part = places.parts.get(number)
        if part is None or not self.places.shape[1]:
            return rows, None
        mine = (self.places >= part.start) & (self.places < part.stop) & (self.sides != 0)
        if not mine.any():
            return rows, None
        weights = (self.multipliers * self.sides).masked_fill(~mine, 0.0)
        index = (self.places - part.start).masked_fill(~mine, 0)
        found = rows.flatten(1).scatter_add(1, index, -weights).view_as(rows)
        return found, (weights * self.points).sum(1)

    def climb(self, gradient: Tensor, rate: float, step: int) -> None:
        """Take Adam's step number `step`, from 1, up the gradient, (R, D); no multiplier gets below 0."""
        moves = ascended(gradient, self.mean, self.square, step)
        self.multipliers = self.multipliers.detach().add(moves, alpha=rate).clamp_(min=0)
