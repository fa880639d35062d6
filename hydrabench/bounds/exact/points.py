"""Points of a ball that may be adversarial examples: where bounds come from, and downhill from there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hydrabench.bounds.exact.root import Root
from hydrabench.bounds.exact.walk import Walk

STEPS, DECAY = 12, 0.75  # of the descent; its first step is half a radius


def lowest_points(walk: Walk, rows: Tensor, known: Mapping[int, Tensor]) -> Tensor:
    """Return the points of the ball, (R, *image), where functions of the image, (R, *image), are lowest.

    Args: known: these points for some of the functions, by their row.
    """
    places, ball = walk.root.places, walk.root.ball
    lower, upper = (places.value(vector, 0) for vector in (walk.lower, walk.upper))
    if ball.norm == "linf":
        points = torch.where(rows > 0, lower, upper)
        for row, point in known.items():
            points[row] = point
        return points
    moved = ball.x[walk.image] - ball.epsilon * _normalised(rows)
    return torch.minimum(torch.maximum(moved, lower), upper)


def descended(root: Root, points: Tensor, task: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest points on the way down from points of balls, (P, *image), and the functions there, (P,).

    Args: task: the function of each point, (P,). image: whose ball it lies in, (P,).
    """
    best, size = points, root.ball.epsilon / 2
    lowest = root.values(points, task)
    for _ in range(STEPS):
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(root.values(points, task).sum(), points)
        direction = gradient.sign() if root.ball.norm == "linf" else _normalised(gradient)
        points = _inside(root, points.detach() - size * direction, image)
        values = root.values(points, task)
        better = values < lowest
        lowest = torch.where(better, values, lowest)
        best = torch.where(better.view(-1, *[1] * (points.ndim - 1)), points, best)
        size *= DECAY
    return best, lowest


def _inside(root: Root, points: Tensor, image: Tensor) -> Tensor:
    """Move points into the balls of images."""
    if root.ball.norm != "linf":
        x = root.ball.x[image]
        length = (points - x).flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
        points = x + (points - x) * (root.ball.epsilon / length.clamp(min=root.ball.epsilon))
    lower, upper = (root.places.value(vector, 0)[image] for vector in (root.lower, root.upper))
    return torch.minimum(torch.maximum(points, lower), upper)


def _normalised(rows: Tensor) -> Tensor:
    length = rows.flatten(1).norm(dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
    found: Tensor = rows / length.view(-1, *[1] * (rows.ndim - 1))
    return found
