"""The ball around images that an attack may search, and every step into it: noise, directions, projections.

A float32 point next to the sphere may lie a rounding error outside it. Here corners and offsets are rounded towards
the image, and lengths are measured in float64, so that each point lies in the ball exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hydrabench.threat import PIXEL_MAX, PIXEL_MIN, AttackNorm, linf_box

# Offsets are scaled to this share of the radius, so that float64 sums of squares in any order stay below it.
SHRINK = 1 - 2.0**-40
SPARSE = 0.05  # share of the pixels that a step in L1 moves


@dataclass(frozen=True)
class ExactBall:
    """The points within `epsilon` of each image in a norm, and within the pixel range.

    x: images, (B, C, H, W), in [0, 1].
    epsilon: radius in pixel units, >= 0; one for all images, or (B,), float64.
    lower, upper: in L∞, corners of the box, representable in the precision of `x`; None in other norms.
    """

    x: Tensor
    epsilon: float | Tensor
    norm: AttackNorm
    lower: Tensor | None = field(default=None, repr=False)
    upper: Tensor | None = field(default=None, repr=False)

    @classmethod
    def around(cls, x: Tensor, epsilon: float | Tensor, norm: AttackNorm) -> ExactBall:
        """Return the ball around images `x`."""
        return cls(x, epsilon, norm, *(_corners(x, epsilon) if norm == "linf" else (None, None)))

    def rows(self, kept: Tensor) -> ExactBall:
        """Return the ball around some of the images; kept: (B,), bool, or their positions."""
        radius = self.epsilon if isinstance(self.epsilon, float | int) else self.epsilon[kept]
        lower = None if self.lower is None else self.lower[kept]
        upper = None if self.upper is None else self.upper[kept]
        return ExactBall(self.x[kept], radius, self.norm, lower, upper)

    def project(self, points: Tensor) -> Tensor:
        """Bring points (B, C, H, W) into the ball and the pixel range, rounding towards the image.

        L∞: into the box between the corners, which also lies inside `threat.linf_box`, the box that bounds certify.
        L2: radially, then clamped, which only moves towards the image. L1: to the nearest point of the ball and the
        pixel range together (Croce and Hein 2021, arXiv:2103.01208, section 3).
        """
        if self.lower is not None and self.upper is not None:
            return torch.minimum(torch.maximum(points, self.lower), self.upper)
        centre = self.x.double()
        offset = points.double() - centre
        if self.norm == "l2":
            radius = torch.as_tensor(self.epsilon, dtype=torch.float64, device=offset.device) * SHRINK
            length = torch.linalg.vector_norm(offset.flatten(1), dim=1)
            offset.mul_(per_image(torch.where(length > radius, radius / length, 1.0), offset))
        else:
            offset = _nearest_in_l1(offset, centre, self.epsilon)
        moved = centre.add(offset).clamp_(PIXEL_MIN, PIXEL_MAX).to(self.x.dtype)
        beyond = (moved.double() - centre).abs_() > offset.abs_()
        return torch.where(beyond, torch.nextafter(moved, self.x), moved)

    def scaled(self, noise: Tensor) -> Tensor:
        """Return the points x + epsilon * noise, projected; noise: of the unit ball, (B, C, H, W)."""
        radius = self.epsilon if isinstance(self.epsilon, float | int) else per_image(self.epsilon.to(noise), noise)
        return self.project(self.x + radius * noise.to(self.x))


def lengths(offset: Tensor, norm: AttackNorm) -> Tensor:
    """Return the length of each offset, (B, ...), in pixel units, measured in float64, (B,)."""
    flat = offset.double().flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    return flat.abs().sum(1) if norm == "l1" else torch.linalg.vector_norm(flat, dim=1)


def project(points: Tensor, x: Tensor, epsilon: float | Tensor, *, norm: AttackNorm) -> Tensor:
    """Bring `points`, any values, into the ball of radius `epsilon` around `x`; see `ExactBall.project`."""
    return ExactBall.around(x, epsilon, norm).project(points)


def unit_noise(shape: Sequence[int], *, norm: AttackNorm, generator: torch.Generator) -> Tensor:
    """Draw one point per image uniformly from the unit ball of `norm`.

    L∞: every pixel from U(-1, 1). L2: a Gaussian direction times U^(1/d), d pixels per image. L1: exponential
    variables with random signs, divided by their sum and that of one more.

    Args:
        shape: (B, C, H, W).
        generator: drawn from on its own device, always in float32, so that a stream means the same
            noise in every precision.
    Returns: float32, of `shape`, on the generator's device.
    """
    device = generator.device
    if norm == "linf":
        return torch.rand(tuple(shape), generator=generator, device=device).mul_(2).sub_(1)
    if norm == "l1":
        sizes = torch.empty(tuple(shape), device=device).exponential_(generator=generator)
        rest = torch.empty(shape[0], device=device).exponential_(generator=generator)
        signs = torch.randint(0, 2, tuple(shape), generator=generator, device=device).mul_(2).sub_(1)
        return signs * sizes / per_image(sizes.flatten(1).sum(1) + rest, sizes)
    direction = normalised(torch.randn(tuple(shape), generator=generator, device=device))
    radius = torch.rand(shape[0], generator=generator, device=device) ** (1 / direction[0].numel())
    return direction * per_image(radius, direction)


def random_start(x: Tensor, epsilon: float, *, norm: AttackNorm, generator: torch.Generator) -> Tensor:
    """Draw a point per image uniformly from the ball around `x`, projected into the pixel range.

    Returns: images of the shape, precision and device of `x`.
    """
    return ExactBall.around(x, epsilon, norm).scaled(unit_noise(x.shape, norm=norm, generator=generator))


def steepest(points: Tensor, gradient: Tensor, step_size: float | Tensor, *, norm: AttackNorm) -> Tensor:
    """Move by `step_size` in the steepest direction of `norm`; a zero gradient moves nothing.

    L∞: the gradient's sign. L2: its direction. L1: equally along the largest entries, `SPARSE` of the pixels, of those
    that can move inside the pixel range (Tramèr and Boneh 2019, arXiv:1904.13000, SLIDE). The result may lie outside
    the ball; `project` brings it back.

    Args: step_size: in pixel units, or one that broadcasts to the points.
    """
    if norm == "linf":
        return points + step_size * gradient.sign()
    if norm == "l2":
        return points + step_size * normalised(gradient)
    flat = gradient.masked_fill(stuck(points, gradient), 0.0).flatten(1)
    count = max(1, round(SPARSE * flat.shape[1]))
    largest = flat.abs().topk(count, dim=1).indices
    direction = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign())
    share = direction.abs().sum(1, keepdim=True).clamp_min(1)
    return points + step_size * (direction / share).view_as(points)


def stuck(points: Tensor, direction: Tensor) -> Tensor:
    """Return which pixels would leave the pixel range at once if they moved along `direction`, bool, of its shape."""
    return ((points <= PIXEL_MIN) & (direction < 0)) | ((points >= PIXEL_MAX) & (direction > 0))


def normalised(vectors: Tensor) -> Tensor:
    """Scale each image of (B, ...) to L2 length 1; zero stays zero.

    Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
    """
    tiny = torch.finfo(vectors.dtype).tiny
    largest = vectors.flatten(1).abs().amax(1).clamp_min(tiny)
    scaled = vectors / per_image(largest, vectors)
    length = torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp_min(tiny)
    return scaled / per_image(length, vectors)


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Shape (B,) values, or one, so that they multiply (B, ...) images."""
    return values.reshape(-1, *[1] * (images.dim() - 1))


def _corners(x: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the corners of the L∞ ball: the outermost numbers of the precision of `x` that lie in it exactly.

    Each also lies in `linf_box`, whose float32 arithmetic may round either way.
    """
    centre = x.double()
    radius = epsilon if isinstance(epsilon, float | int) else per_image(epsilon.double(), x)
    nearest = linf_box(x, epsilon if isinstance(epsilon, float | int) else per_image(epsilon.to(x), x))
    corners = []
    for exact, certified, innermost in (
        (centre - radius, nearest[0], torch.maximum),
        (centre + radius, nearest[1], torch.minimum),
    ):
        corner = exact.clamp_(PIXEL_MIN, PIXEL_MAX).to(x.dtype)
        outside = (corner.double() - centre).abs_() > radius
        corners.append(innermost(torch.where(outside, torch.nextafter(corner, x), corner), certified))
    return corners[0], corners[1]


def _nearest_in_l1(offset: Tensor, centre: Tensor, epsilon: float | Tensor) -> Tensor:
    """Return the nearest offsets of L1 length at most epsilon that keep centre + offset in the pixel range.

    Such an offset is sign(o) * clamp(abs(o) - t, 0, room), room being the way to the pixel range's end, with the
    least t >= 0 for which its length is no more than epsilon. The length falls piecewise linearly in t, with corners
    where a pixel leaves its end and where it comes to 0: the corners are sorted, and t lies between two of them.

    Args: offset, centre: (B, C, H, W), float64.
    """
    size = offset.abs().flatten(1)
    room = torch.where(offset > 0, PIXEL_MAX - centre, centre - PIXEL_MIN).flatten(1).clamp_min_(0.0)
    radius = torch.as_tensor(epsilon, dtype=torch.float64, device=offset.device).expand(len(size)) * SHRINK
    allowed = torch.minimum(size, room)
    too_long = allowed.sum(1) > radius
    shorter = torch.zeros_like(radius)
    if too_long.any():
        shorter[too_long] = _threshold(size[too_long], room[too_long], radius[too_long])
    kept = torch.minimum((size - shorter[:, None]).clamp_min_(0.0), room)
    kept *= (radius / kept.sum(1).clamp_min(1e-300)).clamp_max(1.0)[:, None]  # what sorting and summing rounded
    return offset.sign() * kept.view_as(offset)


def _threshold(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """Return t >= 0 with sum(clamp(size - t, 0, room)) = radius for each row; at t = 0 the sum is larger."""
    corners, order = torch.cat([(size - room).clamp_min(0.0), size], dim=1).sort(dim=1)
    begins = order < size.shape[1]  # there a pixel begins to fall with t; at its other corner it has come to 0
    falling = torch.where(begins, 1.0, -1.0).double().cumsum(1)
    fallen = torch.cat([torch.zeros_like(radius)[:, None], (corners.diff(dim=1) * falling[:, :-1]).cumsum(1)], dim=1)
    length = torch.minimum(size, room).sum(1, keepdim=True) - fallen
    place = (length >= radius[:, None]).sum(1, keepdim=True).sub_(1).clamp_min_(0)
    beyond = length.gather(1, place)[:, 0] - radius
    return corners.gather(1, place)[:, 0] + beyond / falling.gather(1, place)[:, 0].clamp_min(1.0)
