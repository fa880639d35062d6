"""Projected gradient ascent inside the threat model: the core that training and evaluation share.

Only the input is differentiated (`torch.autograd.grad`), so an attack leaves no gradient on the
parameters. Whether the network is in train or eval mode is the caller's decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hydrabench.attacks.ball import ExactBall, per_image, random_start, steepest
from hydrabench.attacks.losses import LOSSES, margin
from hydrabench.errors import lookup
from hydrabench.threat import AttackNorm

Ascended = Callable[[Tensor], Tensor]
Checked = Callable[[Tensor, Tensor, int], object]


def default_step_size(epsilon: float, steps: int) -> float:
    """2.5 * epsilon / steps: far enough to reach any boundary point of the ball, with room to turn.

    Source: Madry et al. (2018), arXiv:1706.06083, section 5, for L2; their `robustness` library takes it for both.
    """
    return 2.5 * epsilon / steps


def ascend(
    x: Tensor, start: Tensor, epsilon: float, objective: Ascended, *, norm: AttackNorm, steps: int, step_size: float
) -> Tensor:
    """Climb `objective` from `start` by projected gradient steps.

    Args:
        x: images at the centre of the ball, (B, C, H, W), in [0, 1].
        start: first points, (B, C, H, W); projected before the first step.
        epsilon: radius in pixel units, >= 0.
        objective: maps points (B, C, H, W) to one value per image, (B,), to be maximised.
        step_size: length of a step in `norm`, in pixel units.
    Returns: the last points, (B, C, H, W), inside the ball and in [0, 1], detached.
    Source: Madry et al. (2018), arXiv:1706.06083, section 2.1.
    """
    ball = ExactBall.around(x, epsilon, norm)
    points = ball.project(start.detach())
    for _ in range(steps):
        points.requires_grad_()
        with torch.enable_grad():
            value = objective(points).sum()
        points = ball.project(steepest(points.detach(), input_gradient(value, points), step_size, norm=norm))
    return points.detach()


def pgd(  # noqa: PLR0913  (the attack's settings, each of which some caller changes)
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    generator: torch.Generator,
    norm: AttackNorm = "linf",
    steps: int = 50,
    step_size: float | None = None,
    loss: str = "ce",
) -> Tensor:
    """Attack each image by projected gradient ascent from a random start.

    Args:
        network: classifier of images in [0, 1]; its mode is the caller's, its parameters get no gradient.
        x: images, (B, C, H, W), in [0, 1].
        y: true classes, (B,), int64.
        epsilon: radius in pixel units, >= 0.
        generator: of the random start.
        steps: number of gradient steps, >= 1.
        step_size: in pixel units; None takes `default_step_size`.
        loss: an entry of `LOSSES`.
    Returns: the last points, (B, C, H, W), inside the ball and in [0, 1].
    Raises: ConfigError for an unknown loss. Source: Madry et al. (2018), arXiv:1706.06083, section 2.1.
    """
    maximised = lookup("attack loss", LOSSES, loss)
    if step_size is None:
        step_size = default_step_size(epsilon, steps)
    start = random_start(x, epsilon, norm=norm, generator=generator)

    def objective(points: Tensor) -> Tensor:
        return maximised(network(points), y)

    return ascend(x, start, epsilon, objective, norm=norm, steps=steps, step_size=step_size)


@dataclass(frozen=True)
class Moves:
    """The steps of `search`. step_size: in pixel units. momentum: share of the last direction kept, in [0, 1)."""

    steps: int
    step_size: float
    momentum: float = 0.0


@dataclass(frozen=True)
class Searched:
    """The result of a search. broke_at: gradient steps done when each image broke, -1 where it did not, (B,).

    smallest: smallest margin of the points of each image, (B,). points: those that broke an image, and the last ones of
    the others, (B, C, H, W).
    """

    broke_at: Tensor
    smallest: Tensor
    points: Tensor

    def keep(self, alive: Tensor, wrong: Tensor, lowest: Tensor, points: Tensor, done: int) -> None:
        """Write down the images that broke. alive: their rows here. wrong: which of these broke after `done` steps."""
        gone = wrong.nonzero()[:, 0]
        rows = alive[gone]
        self.broke_at[rows], self.smallest[rows], self.points[rows] = done, lowest[gone], points[gone]


def search(
    network: nn.Module,
    ball: ExactBall,
    start: Tensor,
    classes: tuple[Tensor, ...],
    loss: Callable[..., Tensor],
    *,
    how: Moves,
    check: Checked,
) -> Searched:
    """Climb `loss`, classify every point, the start and the last included, and drop an image once it is misclassified.

    Args:
        ball: around the images, (B, C, H, W). start: inside it.
        classes: of each image the true one, and for a targeted loss the target, each (B,); `loss` takes the logits and
            these.
        check: called with logits whose sum is not finite, the rows they are of, and the steps done; may raise.
    Source: Madry et al. (2018), arXiv:1706.06083, section 2.1; momentum is that of Dong et al. (2018),
        arXiv:1710.06081, algorithm 1.
    """
    points, direction = start, torch.zeros_like(start)
    result = Searched(torch.full_like(classes[0], -1), start.new_full((len(start),), torch.inf), start.clone())
    lowest, alive = result.smallest, torch.arange(len(start), device=start.device)
    for done in range(how.steps + 1):
        last = done == how.steps
        with torch.set_grad_enabled(not last):
            logits = network(points.requires_grad_(not last))
        seen = logits.detach()
        if not math.isfinite(seen.sum().item()):
            check(seen, alive, done)
        lowest = torch.minimum(lowest, margin(seen, classes[0]))
        wrong = seen.argmax(1) != classes[0]
        broken = bool(wrong.any())
        if last or (broken and bool(wrong.all())):
            break
        with torch.enable_grad():
            gradient = input_gradient(loss(logits, *classes).sum(), points)
        points = points.detach()
        if broken:
            result.keep(alive, wrong, lowest, points, done)
            kept = wrong.logical_not().nonzero()[:, 0]
            alive, lowest, points, gradient = alive[kept], lowest[kept], points[kept], gradient[kept]
            ball, classes = ball.rows(kept), tuple(one[kept] for one in classes)
            direction = direction[kept] if how.momentum else direction
        if how.momentum:
            gradient = direction = how.momentum * direction + _of_mean_one(gradient)
        points = ball.project(steepest(points, gradient, how.step_size, norm=ball.norm))
    result.smallest[alive], result.points[alive] = lowest, points.detach()
    result.broke_at[alive[wrong]] = done
    return result


def input_gradient(value: Tensor, points: Tensor) -> Tensor:
    """Return the gradient at `points`, zero for a network that is cut off from its input; `checks` flags those."""
    if not value.requires_grad:
        return torch.zeros_like(points)
    (gradient,) = torch.autograd.grad(value, points, allow_unused=True)
    return torch.zeros_like(points) if gradient is None else gradient


def _of_mean_one(gradient: Tensor) -> Tensor:
    """Scale the gradient of each image so that its absolute entries have mean 1; zero stays zero."""
    mean = gradient.abs().flatten(1).mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / per_image(mean, gradient)
