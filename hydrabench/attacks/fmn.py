"""Fast minimum norm: for each image the smallest perturbation that changes its prediction, in L∞, L2 and L1."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hydrabench.attacks.ball import ExactBall, lengths, normalised, per_image, stuck
from hydrabench.attacks.losses import margin
from hydrabench.attacks.pgd import input_gradient
from hydrabench.threat import PIXEL_MAX, AttackNorm

DUAL: dict[AttackNorm, AttackNorm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
FIRST_STEP = {"linf": 10.0, "l2": 1.0, "l1": 1.0}  # L2 length of the first step in pixel units; the last is 1/100 of it
OVERSHOOT = 1.02  # of the way to the predicted boundary; projections round inwards, so its points are not beyond it
FIRST_CHANGE, LAST_CHANGE = 0.05, 0.001  # by which the radius shrinks after a success, and grows after a failure


def fmn(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: AttackNorm,
    steps: int,
    check: Callable[[Tensor, int], object] = lambda *_: None,
) -> tuple[Tensor, Tensor]:
    """Search for the nearest misclassified point of each image.

    The points descend the margin and are projected into a ball whose radius follows them: to the boundary that the
    gradient predicts until a misclassified point is found, then down after each success and up after each failure.
    Steps and changes of the radius fall along a cosine. Nothing is drawn at random.

    Args:
        network: classifier in eval mode. x: images, (B, C, H, W), in [0, 1]. y: true classes, (B,), int64.
        steps: gradient steps, >= 1. check: called with all logits and the steps done; may raise.
    Returns: the length of the smallest perturbation found, (B,), float64, 0 for a misclassified image, infinite where
        none was found; and its point, (B, C, H, W), the image itself where none was found.
    Source: Pintor et al. (2021), arXiv:2102.12827, algorithm 1. The gradient is scaled to L2 length 1 in every norm, as
        theirs; here pixels that could only leave the pixel range do not count in it.
    """
    largest = lengths(torch.maximum(x, PIXEL_MAX - x), norm)
    best, nearest, points = torch.full_like(largest, torch.inf), x.clone(), x.clone()
    radius, found = best.clone(), torch.zeros_like(y, dtype=torch.bool)
    for done in range(steps + 1):
        with torch.set_grad_enabled(done < steps):
            logits = network(points.requires_grad_(done < steps))
            margins = margin(logits, y)
        check(logits.detach(), done)
        wrong, length = logits.argmax(1) != y, lengths(points.detach().double() - x.double(), norm)
        nearer = wrong & (length < best)
        best, nearest = torch.where(nearer, length, best), torch.where(per_image(nearer, x), points.detach(), nearest)
        if done == steps:
            break
        gradient = input_gradient(margins.sum(), points)
        gradient = gradient.masked_fill(stuck(points.detach(), -gradient), 0.0)
        found |= wrong
        change, size = _schedule(done, steps, norm)
        predicted = length + OVERSHOOT * margins.detach().double().abs() / lengths(gradient, DUAL[norm])
        grown = torch.where(found, radius * (1 + change), predicted.nan_to_num(nan=torch.inf))
        radius = torch.where(wrong, torch.minimum(radius * (1 - change), best), grown).minimum(largest)
        points = ExactBall.around(x, radius, norm).project(points.detach() - size * normalised(gradient))
    return best, nearest


def _schedule(done: int, steps: int, norm: AttackNorm) -> tuple[float, float]:
    """Return by which share the radius changes, and how long the next step is, once `done` of the steps are done."""
    share = (1 + math.cos(math.pi * done / steps)) / 2
    return LAST_CHANGE + (FIRST_CHANGE - LAST_CHANGE) * share, FIRST_STEP[norm] * (0.01 + 0.99 * share)
