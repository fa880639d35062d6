"""Adversarial examples for objectives that bound boxes: the strongest of the points that an attack visits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hydrabench.attacks import ExactBall, steepest
from hydrabench.objectives.step import TrainingStep
from hydrabench.threat import linf_box

MIDDLE = 0.5  # of the pixel range
FOOLED = 1e6  # lifts every misclassified point above all that are classified right
DECAYS = (5, 8, 9)  # tenths of the steps after which the length of a step falls to a tenth


def strongest_examples(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    step: TrainingStep,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    decays: bool = False,
) -> Tensor:
    """Return the points with the largest cross entropy among those that PGD reaches in an L-infinity ball.

    The start is uniform in the ball and does not count; a misclassified point beats all that are classified right.
    The network runs in eval mode and is left in train mode; its parameters get no gradients.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,).
        epsilon: radius in pixel units, >= 0.
        steps: gradient steps, >= 1.
        step_size: length of the first step in pixel units.
        decays: whether the length falls to a tenth after 5, 8 and 9 tenths of the steps.
    Returns: images, (B, C, H, W), in [0, 1], detached.
    Source: the attacks of the authors of SABR (arXiv:2210.04871, appendix C; with `decays`) and of expressive losses
        (arXiv:2305.13991, appendix F).
    """
    network.eval()
    ball = ExactBall.around(x, epsilon, "linf")
    sizes = [step_size * (_decay(number, steps) if decays else 1.0) for number in range(steps)]
    points = _strongest_visited(network, ball, ball.scaled(step.uniform(x)), y, sizes)
    network.train()
    return points.detach()


def small_centres(points: Tensor, x: Tensor, epsilon: float, half: float) -> Tensor:
    """Return the centres nearest to `points` of boxes of half side `half` in the box around `x`, cut to [0, 1].

    Where the pixel range cuts the box around `x` to less than a small box, the small one is cut on the same side.
    Source: arXiv:2210.04871, section 3.
    """
    lower, upper = linf_box(x, epsilon)
    low, high = lower + half, upper - half
    cut = torch.where(x < MIDDLE, high, low)
    return torch.where(low <= high, torch.minimum(torch.maximum(points, low), high), cut)


def _strongest_visited(network: nn.Module, ball: ExactBall, start: Tensor, y: Tensor, sizes: Sequence[float]) -> Tensor:
    """Return the strongest of the points after each step from `start`; `sizes` holds the lengths of the steps."""
    best, most = start, torch.full((len(start),), -torch.inf, device=start.device)
    points = start
    for number, size in enumerate(sizes):
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            losses, ranked = _judged(network, points, y)
        if number:
            best, most = _stronger(best, most, points.detach(), ranked)
        (gradient,) = torch.autograd.grad(losses.sum(), points)
        points = ball.project(steepest(points.detach(), gradient, size, norm="linf"))
    if len(sizes) == 1:
        return points  # no need to judge the only one
    with torch.no_grad():
        _, ranked = _judged(network, points, y)
    return _stronger(best, most, points, ranked)[0]


def _judged(network: nn.Module, points: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of each point, and its rank: the cross entropy, lifted where it is misclassified."""
    logits = network(points)
    losses = functional.cross_entropy(logits, y, reduction="none")
    return losses, losses.detach().float() + FOOLED * (logits.argmax(1) != y)


def _stronger(best: Tensor, most: Tensor, points: Tensor, ranked: Tensor) -> tuple[Tensor, Tensor]:
    better = ranked > most
    return torch.where(better.view(-1, *[1] * (best.ndim - 1)), points, best), torch.where(better, ranked, most)


def _decay(number: int, steps: int) -> float:
    """Return the factor on the length of the 0-based step `number`."""
    return float(0.1 ** sum(10 * number >= tenths * steps for tenths in DECAYS))
