"""Copies of images under Gaussian noise, and the attack on the classifier that averages over them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hydrabench.attacks import ExactBall
from hydrabench.objectives.step import TrainingStep

SMALLEST_PROBABILITY = 1e-20  # of a probability whose logarithm is taken
SHORTEST = 1e-8  # of a gradient that is divided by its length

Moved = Callable[[Tensor, Tensor], Tensor]  # from points and unit gradients, both (B, C, H, W), to the next points


def noises(x: Tensor, step: TrainingStep, *, copies: int, sigma: float) -> Tensor:
    """Draw Gaussian noise of standard deviation `sigma` for `copies` copies of images `x`: (copies, B, C, H, W)."""
    return torch.stack([sigma * step.normal(x) for _ in range(copies)])


def noisy_logits(network: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """Return the logits of every noisy copy of images `x`, from one forward pass: (copies, B, K)."""
    logits: Tensor = network((x + noise).flatten(0, 1))
    return logits.view(len(noise), len(x), -1)


def smoothed_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Return -log of the mean probability of class y over the copies, (B,); logits: (copies, B, K).

    Source: Salman et al. (2019), arXiv:1906.04584, equation 6; for one copy it is the cross entropy.
    """
    if len(logits) == 1:
        return functional.cross_entropy(logits[0], y, reduction="none")
    return functional.nll_loss(logits.softmax(2).mean(0).clamp_min(SMALLEST_PROBABILITY).log(), y, reduction="none")


def climb(network: nn.Module, x: Tensor, y: Tensor, noise: Tensor, *, steps: int, moved: Moved) -> list[Tensor]:
    """Return the points of `steps` gradient steps that raise the loss of the averaged probabilities, from `x`.

    The same noise is used in every step. The network runs in eval mode and is left in train mode; its parameters get
    no gradients.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,). noise: (copies, B, C, H, W).
        moved: the next points; its gradients have the L2 length 1, or 0.
    Source: Salman et al. (2019), arXiv:1906.04584, section 3.1.
    """
    network.eval()
    points = [x]
    for _ in range(steps):
        here = points[-1].detach().requires_grad_()
        with torch.enable_grad():
            value = smoothed_losses(noisy_logits(network, here, noise), y).sum()
        (gradient,) = torch.autograd.grad(value, here)
        length = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
        points.append(moved(here.detach(), gradient / (length + SHORTEST)))
    network.train()
    return points[1:]


def in_ball(x: Tensor, epsilon: float, step_size: float) -> Moved:
    """Return the step of length `step_size` that stays within L2 distance `epsilon` of `x` and in [0, 1]."""
    ball = ExactBall.around(x, epsilon, "l2")
    return lambda points, direction: ball.project(points + step_size * direction)
