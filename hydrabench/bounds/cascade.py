"""Cascade: the cheapest method first, the next one only for what it left open.

No method has a proof for an image that is misclassified, or that has an adversarial example: the first are found by
running the network, many of the others by one step along the gradient, which costs less than any method but `ibp`.
Where rounding alone may have made a margin negative, all methods run all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hydrabench.bounds.backward import MEMORY
from hydrabench.bounds.crown import crown_ibp_rows, crown_rows
from hydrabench.bounds.ibp import interval_rows
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.specification import Problem, clean_margins, pose, solved
from hydrabench.bounds.symbolic import symbolic_rows
from hydrabench.errors import lookup
from hydrabench.threat import PIXEL_MAX, PIXEL_MIN, Norm, linf_box

STEPS: dict[str, Callable[[Problem], Tensor]] = {
    "ibp": interval_rows,
    "symbolic": symbolic_rows,
    "crown-ibp": crown_ibp_rows,
    "crown": crown_rows,
}
DEFAULT = ("ibp", "crown-ibp", "crown")
CLEARLY = 1e-3  # how far below 0 a margin must be, relative to the image's largest, so that it is no work of rounding


@dataclass(frozen=True, eq=False)
class Proofs:
    """The bounds that a cascade found.

    lower: a lower bound of each image's margin, (B,). It is the largest that the methods gave, class by class, and need
        not be that of the tightest method, which may not have run; of a refuted image it is that of intervals.
    methods: which method made it positive, if any did.
    refuted: the images, (B,), that no method can prove, because they have an adversarial example or are one.
    """

    lower: Tensor
    methods: tuple[str | None, ...]
    refuted: Tensor


def cascade(
    network: nn.Module | Prepared,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    norm: Norm = "linf",
    methods: Sequence[str] = DEFAULT,
) -> Proofs:
    """Bound margins by one method after the other, as long as an image has a margin that is not proved positive.

    A method sees only images that no method before it has proved and that are not refuted, and of these only the
    classes that are still open; `ibp`, if it is the first, sees every image. What is proved is what one of the methods
    alone would prove, and images of which each class is proved by some method.

    Args:
        network, x, y, epsilon, norm: as for `ibp.interval_margins`.
        methods: keys of `STEPS`, at least one.
    Raises: ConfigError for an unknown method, ValueError if there is none, and what `ibp.interval_margins` raises.
    """
    return _cascade(pose(network, x, y, epsilon, norm=norm), methods, MEMORY)


def cascade_margins(
    network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: float, *, norm: Norm = "linf", memory: int = MEMORY
) -> Tensor:
    """Like `ibp.interval_margins`, by a cascade of the default methods."""
    return _cascade(pose(network, x, y, epsilon, norm=norm), DEFAULT, memory).lower


def _cascade(problem: Problem, methods: Sequence[str], memory: int) -> Proofs:
    if not methods:
        raise ValueError("a cascade needs at least one method")
    steps = [(method, lookup("method", STEPS, method)) for method in methods]
    lower = solved(problem, STEPS["ibp"], memory=memory)
    proved: list[str | None] = [None] * len(lower)
    images = torch.arange(len(lower), device=lower.device)
    if methods[0] == "ibp":
        steps = steps[1:]
        images = _still_open(lower, images, proved, "ibp")
    lost = _refuted(problem.images(images), memory=memory)
    refuted = torch.zeros(len(lower), dtype=torch.bool, device=lower.device).index_fill(0, images[lost], True)
    images = images[~lost]
    if methods[0] != "ibp":
        lower = lower.index_fill(0, images, -torch.inf)  # intervals were not among the methods
    for name, step in steps:
        if not len(images):
            break
        best = _improved(problem.images(images), lower[images], step, memory=memory)
        lower = lower.index_copy(0, images, best)
        images = _still_open(lower, images, proved, name)
    return Proofs(lower.min(1).values, tuple(proved), refuted)


def _still_open(lower: Tensor, images: Tensor, proved: list[str | None], name: str) -> Tensor:
    """The numbers among `images` that the method called `name` leaves open; what it proves is written down."""
    done = (lower[images] > 0).all(1)
    for image in images[done].tolist():
        proved[image] = name
    return images[~done & ~lower[images].isnan().any(1)]  # NaN is no proof, and no method will say anything else


def _improved(problem: Problem, lower: Tensor, step: Callable[[Problem], Tensor], *, memory: int) -> Tensor:
    """Return the larger of known bounds of margins and those of a method, which runs only where they are open."""
    worst = lower.argsort(1)[:, : int((lower <= 0).sum(1).max())]
    found = solved(problem.functions(worst), step, memory=memory)
    still_open = lower.gather(1, worst) <= 0  # the others are there to fill up and change nothing
    return lower.scatter_reduce(1, worst, found.masked_fill(~still_open, -torch.inf), "amax")


# Adversarial examples --------------------------------------------------------------------------


def _refuted(problem: Problem, *, memory: int) -> Tensor:
    """Return which images are clearly misclassified, as they are or after one step along the gradient: (B,)."""
    wrong = _clearly_wrong(clean_margins(problem))
    right = (~wrong).nonzero().squeeze(1)
    if torch.is_inference_mode_enabled() or not len(right):  # no gradients there
        return wrong
    after = solved(problem.images(right), _margins_after_a_step, memory=memory)
    return wrong.index_copy(0, right, _clearly_wrong(after))


def _clearly_wrong(margins: Tensor) -> Tensor:
    """Return which images have a negative margin, (B, S), that is no work of rounding: (B,)."""
    return (margins < -CLEARLY * margins.abs().amax(1, keepdim=True)).any(1)


def _margins_after_a_step(problem: Problem) -> Tensor:
    """The margins at the point of the ball to which the gradient of the smallest one leads, (B, S).

    Source: Goodfellow, Shlens and Szegedy (2015), arXiv:1412.6572, section 4, with the margin as the loss.
    """
    ball = problem.ball
    with torch.enable_grad():
        x = ball.x.detach().requires_grad_()
        smallest = clean_margins(replace(problem, ball=replace(ball, x=x))).min(1).values
        (gradient,) = torch.autograd.grad(smallest.sum(), x)
    if ball.norm == "linf":
        moved = torch.where(gradient > 0, *linf_box(ball.x, ball.epsilon))
    else:
        tiny, image = torch.finfo(x.dtype).tiny, tuple(range(1, x.ndim))
        gradient = gradient / gradient.abs().amax(image, keepdim=True).clamp(min=tiny)  # its squares could underflow
        moved = ball.x - ball.epsilon * gradient / torch.linalg.vector_norm(gradient, dim=image, keepdim=True).clamp(1)
        moved = moved.clamp(PIXEL_MIN, PIXEL_MAX)
    return clean_margins(replace(problem, ball=replace(ball, x=moved))).detach()
