"""Subproblems in which nothing is left to cut: on them every function is linear, so a linear program bounds them best.

There the network is linear in the image, and so are the constraints. The dual values of the smallest value between the
corners are the best multipliers; Adam comes near them, but not near enough where a margin is almost 0. The bound is
not taken from the linear program: it is computed with its multipliers and rounded as every other one, which holds for
any multipliers that are not negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from hydrabench.bounds.exact.formulation import Floats
from hydrabench.bounds.exact.splits import Constraints
from hydrabench.bounds.exact.walk import Walk

PENALTY = 1e4  # of breaking constraints, so that a program of which nothing is left has a dual solution, too


def settle(walk: Walk, bounds: Tensor, most: int) -> dict[int, Tensor]:
    """Give the leaves among subproblems that are not proved the best multipliers.

    Args: bounds: of the subproblems, (R,). most: functions that are carried back together.
    Returns: of each of these leaves the point of the ball, (*image), where the function is smallest.
    """
    if walk.root.ball.norm != "linf" or not walk.constraints.places.shape[1]:
        return {}
    leaves = ~(bounds > 0) & ~walk.root.undecided(walk.lower, walk.upper).any(1)
    corners = [vector[:, walk.root.places.parts[0]].cpu().numpy() for vector in (walk.lower, walk.upper)]
    points: dict[int, Tensor] = {}
    for rows in _groups(leaves.nonzero().squeeze(1).tolist(), walk.constraints.sides, most):
        for row, coefficients, constants in _functions(walk, rows):
            found = _smallest(coefficients, constants, corners[0][row], corners[1][row])
            if found is not None:
                multipliers, point = found
                used = walk.constraints.sides[row] != 0
                walk.constraints.multipliers[row, used] = torch.from_numpy(multipliers).to(walk.lower)
                points[row] = torch.from_numpy(point).to(walk.lower).view(walk.root.ball.x.shape[1:])
    return points


def _groups(rows: Sequence[int], sides: Tensor, most: int) -> Iterator[list[int]]:
    """Yield rows in groups whose functions, one more than constraints each, can be carried back together."""
    counts = ((sides != 0).sum(1) + 1).tolist()
    group: list[int] = []
    for row in rows:
        if group and sum(counts[one] for one in group) + counts[row] > most:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


@torch.no_grad()
def _functions(walk: Walk, rows: Sequence[int]) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield for each row the function and its constraints, all at least 0 in the part: (1 + D, entries) and (1 + D,).

    The bound is linear in the multipliers: without any it is the function, and a multiplier of 1 takes its constraint
    away from that.
    """
    mine = walk.constraints
    used = [(mine.sides[row] != 0).nonzero().squeeze(1).tolist() for row in rows]
    index = [row for row, places in zip(rows, used, strict=True) for _ in (None, *places)]
    units = mine.multipliers.new_zeros(len(index), mine.places.shape[1])
    start = 0
    for places in used:
        units[[start + 1 + number for number in range(len(places))], places] = 1.0
        start += 1 + len(places)
    copies = Constraints(mine.places[index], mine.sides[index], mine.points[index], units)
    linear = Walk(walk.root, walk.task[index], walk.lower[index], walk.upper[index], copies)
    coefficients, constants = (part.cpu().numpy() for part in linear.functions())
    start = 0
    for row, places in zip(rows, used, strict=True):
        part = slice(start + 1, start := start + 1 + len(places))
        first = part.start - 1
        yield (
            row,
            np.concatenate([coefficients[first : first + 1], coefficients[first] - coefficients[part]]),
            np.concatenate([constants[first : first + 1], constants[first] - constants[part]]),
        )


def _smallest(coefficients: Floats, constants: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats] | None:
    """Minimise the first function between corners where the others are at least 0.

    Returns: their multipliers, (D,), and the point, (entries,); None if the solver fails.
    """
    slack = np.ones((len(constants) - 1, 1))
    found = linprog(
        np.append(coefficients[0], PENALTY),
        A_ub=np.hstack([-coefficients[1:], -slack]),
        b_ub=constants[1:],
        bounds=np.column_stack([np.append(low, 0.0), np.append(high, np.inf)]),
        method="highs",
    )
    if found.status != 0:
        return None
    return np.maximum(-found.ineqlin.marginals, 0.0), np.clip(found.x[:-1], low, high)
