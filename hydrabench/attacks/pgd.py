"""Projected gradient ascent inside the threat model: the core that training and evaluation share.

Only the input is differentiated (`torch.autograd.grad`), so an attack leaves no gradient on the
parameters. Whether the network is in train or eval mode is the caller's decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hydrabench.attacks.losses import LOSSES
from hydrabench.errors import lookup
from hydrabench.threat import PIXEL_MAX, PIXEL_MIN, Norm, linf_box

Ascended = Callable[[Tensor], Tensor]


def default_step_size(epsilon: float, steps: int) -> float:
    """2.5 * epsilon / steps: far enough to reach any boundary point of the ball, with room to turn.

    Source: Madry et al. (2018), arXiv:1706.06083, section 5, for L2; their `robustness` library takes it for both.
    """
    return 2.5 * epsilon / steps


def unit_noise(shape: Sequence[int], *, norm: Norm, generator: torch.Generator) -> Tensor:
    """Draw one point per image uniformly from the unit ball of `norm`.

    Linf: every pixel from U(-1, 1). L2: a Gaussian direction times U^(1/d), d pixels per image.

    Args:
        shape: (B, C, H, W).
        generator: drawn from on its own device, always in float32, so that a stream means the same
            noise in every precision.
    Returns: float32, of `shape`, on the generator's device.
    """
    if norm == "linf":
        return torch.rand(tuple(shape), generator=generator, device=generator.device).mul_(2).sub_(1)
    direction = _normalised(torch.randn(tuple(shape), generator=generator, device=generator.device))
    dimension = direction[0].numel()
    radius = torch.rand(shape[0], generator=generator, device=generator.device) ** (1 / dimension)
    return direction * _per_image(radius, direction)


def random_start(x: Tensor, epsilon: float, *, norm: Norm, generator: torch.Generator) -> Tensor:
    """Draw a point per image uniformly from the ball around `x`, projected into the pixel range.

    Args:
        x: images, (B, C, H, W), in [0, 1].
        epsilon: radius in pixel units, >= 0.
    Returns: images of the shape, precision and device of `x`.
    """
    noise = unit_noise(x.shape, norm=norm, generator=generator)
    return project(x + epsilon * noise.to(x), x, epsilon, norm=norm)


def project(points: Tensor, x: Tensor, epsilon: float, *, norm: Norm) -> Tensor:
    """Bring `points` into the ball of radius `epsilon` around `x` and into the pixel range.

    Linf: into `threat.linf_box`, the very box that the bounds certify. L2: radially into the ball,
    then clamped to the pixel range, which only moves towards `x`, so the norm cannot grow again.

    Args:
        points: (B, C, H, W), any values.
        x: images, (B, C, H, W), in [0, 1].
        epsilon: radius in pixel units, >= 0.
    Returns: (B, C, H, W), in [0, 1].
    """
    if norm == "linf":
        lower, upper = linf_box(x, epsilon)
        return torch.minimum(torch.maximum(points, lower), upper)
    offset = points - x
    length = torch.linalg.vector_norm(offset.flatten(1), dim=1)
    shrink = torch.where(length > epsilon, epsilon / length, 1.0)
    return (x + offset * _per_image(shrink, x)).clamp(PIXEL_MIN, PIXEL_MAX)


def steepest(points: Tensor, gradient: Tensor, step_size: float, *, norm: Norm) -> Tensor:
    """Move by `step_size` in the steepest direction of `norm`: the gradient's sign, or its L2 direction.

    A zero gradient moves nothing. The result may lie outside the ball; `project` brings it back.
    """
    direction = gradient.sign() if norm == "linf" else _normalised(gradient)
    return points + step_size * direction


def ascent_step(points: Tensor, value: Tensor, x: Tensor, epsilon: float, *, norm: Norm, step_size: float) -> Tensor:
    """Take one projected gradient step: the step that every gradient attack here is made of.

    Args:
        points: inside the ball, (B, C, H, W), requiring a gradient.
        value: computed from `points`, a scalar: the sum over the images of what is to grow.
        x: images at the centre of the ball, (B, C, H, W), in [0, 1].
        epsilon, step_size: radius, and length of the step in `norm`, in pixel units.
    Returns: the next points, inside the ball and in [0, 1], detached.
    """
    (gradient,) = torch.autograd.grad(value, points)
    return project(steepest(points.detach(), gradient, step_size, norm=norm), x, epsilon, norm=norm)


def ascend(
    x: Tensor, start: Tensor, epsilon: float, objective: Ascended, *, norm: Norm, steps: int, step_size: float
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
    points = project(start.detach(), x, epsilon, norm=norm)
    for _ in range(steps):
        points.requires_grad_()
        with torch.enable_grad():
            value = objective(points).sum()
        points = ascent_step(points, value, x, epsilon, norm=norm, step_size=step_size)
    return points.detach()


def pgd(  # noqa: PLR0913  (the attack's settings, each of which some caller changes)
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    generator: torch.Generator,
    norm: Norm = "linf",
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


def _normalised(vectors: Tensor) -> Tensor:
    """Scale each image of (B, ...) to L2 length 1; zero stays zero.

    Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
    """
    tiny = torch.finfo(vectors.dtype).tiny
    largest = vectors.flatten(1).abs().amax(1).clamp_min(tiny)
    scaled = vectors / _per_image(largest, vectors)
    length = torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp_min(tiny)
    return scaled / _per_image(length, vectors)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Shape (B,) values so that they multiply (B, ...) images."""
    return values.reshape(-1, *[1] * (images.dim() - 1))
