"""Cascade: the cheapest method first, the next one only for what it left open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hydrabench.bounds.crown import MEMORY
from hydrabench.bounds.full import crown_ibp_rows, crown_rows, interval_rows
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.problem import Problem, clean_margins, pose, solved
from hydrabench.bounds.symbolic import symbolic_rows
from hydrabench.errors import lookup
from hydrabench.threat import Norm

STEPS: dict[str, Callable[[Problem], Tensor]] = {
    "ibp": interval_rows,
    "symbolic": symbolic_rows,
    "crown-ibp": crown_ibp_rows,
    "crown": crown_rows,
}
DEFAULT = ("ibp", "crown-ibp", "crown")


@dataclass(frozen=True, eq=False)
class Proofs:
    """What a cascade found: a lower bound of each margin, (B,), and which method made it positive, if any did.

    The bound is the largest that the methods gave, class by class; it need not be that of the tightest method, which
    may not have been asked.
    """

    lower: Tensor
    methods: tuple[str | None, ...]


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

    The first method sees every image; the others see images that the network classifies as `y`, because no other has a
    proof, and only the classes that are still open.

    Args:
        network, x, y, epsilon, norm: as for `margins.interval_margins`.
        methods: keys of `STEPS`, at least one.
    Raises: ConfigError for an unknown method, ValueError if there is none, and what `margins.interval_margins` raises.
    Source: reference/field.md, section 5.1, item 8.
    """
    return _cascade(pose(network, x, y, epsilon, norm=norm), methods, MEMORY)


def _cascade(problem: Problem, methods: Sequence[str], memory: int) -> Proofs:
    if not methods:
        raise ValueError("a cascade needs at least one method")
    first, *rest = [lookup("method", STEPS, method) for method in methods]
    lower = solved(problem, first, memory=memory)
    proved: list[str | None] = [methods[0] if done else None for done in (lower > 0).all(1).tolist()]
    hopeful = (clean_margins(problem) > 0).all(1)
    for name, step in zip(methods[1:], rest, strict=True):
        # NaN is no proof, and no other method will say anything else.
        images = (hopeful & (lower <= 0).any(1) & ~lower.isnan().any(1)).nonzero().squeeze(1)
        if not len(images):
            break
        worst = lower[images].argsort(1)[:, : int((lower[images] <= 0).sum(1).max())]
        found = solved(problem.images(images).functions(worst), step, memory=memory)
        still_open = lower[images].gather(1, worst) <= 0  # the others are there to fill up and change nothing
        better = lower[images].scatter_reduce(1, worst, found.masked_fill(~still_open, -torch.inf), "amax")
        lower = lower.index_copy(0, images, better)
        for image, done in zip(images.tolist(), (better > 0).all(1).tolist(), strict=True):
            proved[image] = name if done else None
    return Proofs(lower.min(1).values, tuple(proved))


def cascade_margins(
    network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: float, *, norm: Norm = "linf", memory: int = MEMORY
) -> Tensor:
    """Like `margins.interval_margins`, by a cascade of the default methods."""
    return _cascade(pose(network, x, y, epsilon, norm=norm), DEFAULT, memory).lower
