"""Copies of images under Gaussian noise, and the attack on the classifier that averages over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from hydrabench.attacks import ExactBall
from hydrabench.attacks.ball import normalised, per_image
from hydrabench.objectives.step import TrainingStep

SMALLEST_PROBABILITY = 1e-20  # of a probability whose logarithm is taken
SHORTEST = 1e-8  # of a gradient that is divided by its length

Moved = Callable[[Tensor, Tensor], Tensor]  # from points and directions, both (B, C, H, W), to the next points
Directed = Callable[[Tensor, int], Tensor]  # from gradients, (B, C, H, W), and the number of the step to directions


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


def unit(gradient: Tensor, _number: int = 0) -> Tensor:
    """Divide the gradient of each image by its L2 length; next to zero it fades, so that a flat loss moves nothing."""
    return gradient / (_lengths(gradient) + SHORTEST)


def unit_or_random(step: TrainingStep) -> Directed:
    """Return the direction of SmoothAdv: gradients of length 1, and standard normal noise where the gradient is zero.

    The noise is that of an image in the whole batch, however the batch is split.
    Source: the authors' code (github.com/Hadisalman/smoothing-adversarial, attacks.py, PGD_L2).
    """
    seed = int(torch.randint(2**62, (), generator=step.generator))

    def directed(gradient: Tensor, number: int) -> Tensor:
        flat = _lengths(gradient) == 0
        if not flat.any():
            return normalised(gradient)
        fresh = replace(step, generator=torch.Generator().manual_seed(seed + number))
        return torch.where(flat, fresh.normal(gradient), normalised(gradient))

    return directed


def climb(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    *,
    steps: int,
    moved: Moved,
    directed: Directed = unit,
) -> list[Tensor]:
    """Return the points of `steps` gradient steps that raise the loss of the averaged probabilities, from `x`.

    The same noise is used in every step. The network runs in eval mode and is left in train mode; its parameters get
    no gradients.

    Args:
        x: images, (B, C, H, W), in [0, 1]; y: labels, (B,). noise: (copies, B, C, H, W).
        moved: the next points. directed: the direction in which they move, from gradients.
    Source: Salman et al. (2019), arXiv:1906.04584, section 3.1.
    """
    network.eval()
    points = [x]
    for number in range(steps):
        here = points[-1].detach().requires_grad_()
        with torch.enable_grad():
            value = smoothed_losses(noisy_logits(network, here, noise), y).sum()
        (gradient,) = torch.autograd.grad(value, here)
        points.append(moved(here.detach(), directed(gradient, number)))
    network.train()
    return points[1:]


def _lengths(gradient: Tensor) -> Tensor:
    """L2 length of each image's gradient, shaped to multiply it."""
    return per_image(torch.linalg.vector_norm(gradient.flatten(1), dim=1), gradient)


def in_ball(x: Tensor, epsilon: float, step_size: float) -> Moved:
    """Return the step of length `step_size` that stays within L2 distance `epsilon` of `x` and in [0, 1]."""
    ball = ExactBall.around(x, epsilon, "l2")
    return lambda points, direction: ball.project(points + step_size * direction)
