"""Cases of a VNN-LIB property, decided by branch and bound.

A box is stretched to the unit cube t, so that the balls of `decide` take it: x = lower + width * t. The values that
must be positive for a property to hold are max_k (row_k . y - bound_k), one for each case.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn

from hydrabench.bounds.exact.search import Decision, Limits, Verdict, decide
from hydrabench.bounds.prepared import prepared
from hydrabench.bounds.properties import Case
from hydrabench.bounds.specification import pose_outputs

STARTS, STEPS, DECAY = 8, 40, 0.93  # of the attack, for each case; its first step is a quarter of the box
WIDER = 2.0**-50  # of a box relative to its corners, so that rounding in float64 leaves nothing out


class Stretched(nn.Module):
    """Points of the unit cube, (B, N), as inputs of a box."""

    lower: Tensor
    width: Tensor

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        super().__init__()
        self.register_buffer("lower", lower)
        self.register_buffer("width", upper - lower)

    def forward(self, t: Tensor) -> Tensor:
        """Return (B, N)."""
        return t * self.width + self.lower


@dataclass(frozen=True)
class PropertyVerdict:
    """The verdict on a property. point: an input, (N,), float32, that violates it. subproblems: that were bounded."""

    verdict: Verdict
    point: Tensor | None = None
    subproblems: int = 0


def decide_property(
    network: nn.Module,
    input_shape: Sequence[int],
    cases: Sequence[Case],
    seconds: float,
    compute: Callable[[Tensor], Tensor],
) -> PropertyVerdict:
    """Decide whether no input of a network belongs to a case.

    Args:
        network: from (B, *input_shape) to (B, ...), in eval mode.
        seconds: the limit; an answer may come later by what the bounds of one step take.
        compute: outputs of points, (B, *input_shape), float32, that an answer "broken" rests on.
    Raises: UnsupportedLayerError for an operation without a rule.
    """
    end, subproblems = perf_counter() + seconds, 0
    unknown = False
    for some in _by_box(cases):
        search = _Search(network, input_shape, some, compute)
        if search.point is None:
            search.attack()
        if search.point is None and search.bounded:
            decision = search.decide(Limits(2**62, max(end - perf_counter(), 0.0)))
            subproblems += decision.subproblems
            unknown |= decision.verdict == "unknown"
        if search.point is not None:
            return PropertyVerdict("broken", search.point, subproblems)
    return PropertyVerdict("unknown" if unknown else "verified", None, subproblems)


def _by_box(cases: Sequence[Case]) -> list[list[Case]]:
    """Return cases with the same box together; those of an empty box are none."""
    found: dict[bytes, list[Case]] = {}
    for case in cases:
        if bool((case.lower <= case.upper).all()):
            found.setdefault(torch.cat([case.lower, case.upper]).numpy().tobytes(), []).append(case)
    return list(found.values())


class _Search:
    """The cases of one box. point: an input that belongs to one of them. bounded: those with constraints."""

    def __init__(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        cases: Sequence[Case],
        compute: Callable[[Tensor], Tensor],
    ) -> None:
        self.shape, self.cases, self.compute = input_shape, cases, compute
        self.bounded = [case for case in cases if len(case.bounds)]
        self.lower, self.upper = cases[0].lower, cases[0].upper
        room = WIDER * torch.maximum(self.lower.abs(), self.upper.abs())
        self.point: Tensor | None = None
        self.try_points(torch.full((1, len(self.lower)), 0.5, dtype=torch.float64))
        if self.point is None and self.bounded:
            front = [Stretched(self.lower - room, self.upper + room)]
            shaped = [nn.Unflatten(1, tuple(input_shape))] if len(input_shape) > 1 else []
            parts = [*front, *shaped, copy.deepcopy(network), nn.Flatten(1), *_most_violated(self.bounded)]
            self.module = nn.Sequential(*parts).double().eval().requires_grad_(False)

    def try_points(self, t: Tensor) -> list[Tensor | None]:
        """Return for each point of the cube, (P, N), the input that it was rounded to if that belongs to a case."""
        x = (self.lower + t * (self.upper - self.lower)).float()
        low, high = _inside(self.lower, self.upper)
        x = torch.minimum(torch.maximum(x, low), high)
        y = self.compute(x.view(-1, *self.shape)).flatten(1).double()
        hits = torch.zeros(len(x), dtype=torch.bool)
        for case in self.cases:
            hits |= (y @ case.rows.T <= case.bounds).all(1)
        if self.point is None and hits.any():
            self.point = x[int(hits.nonzero()[0, 0])]
        return [point if hit else None for point, hit in zip(x, hits.tolist(), strict=True)]

    def attack(self) -> None:
        """Descend from random points of the cube, each towards one of the cases."""
        generator, count = torch.Generator().manual_seed(0), len(self.bounded)
        t = torch.rand(STARTS * count, len(self.lower), generator=generator, dtype=torch.float64)
        target, size = torch.arange(len(t)) % count, 0.25
        for _ in range(STEPS):
            t.requires_grad_()
            values = self.module(t).gather(1, target.unsqueeze(1)).squeeze(1)
            below = values.detach() <= 0
            if below.any() and any(one is not None for one in self.try_points(t.detach()[below])):
                return
            (gradient,) = torch.autograd.grad(values.sum(), t)
            t = (t.detach() - size * gradient.sign()).clamp_(0, 1)
            size *= DECAY

    def decide(self, limits: Limits) -> Decision:
        """See `search.decide`."""
        centre = torch.full((1, len(self.lower)), 0.5, dtype=torch.float64)
        problem = pose_outputs(prepared(self.module), centre, 0.5)
        return decide(problem, limits, lambda _image, points: self.try_points(points))[0]


def _most_violated(cases: Sequence[Case]) -> list[nn.Module]:
    """Return layers from outputs to max_k (row_k . y - bound_k) for each case; short ones repeat their last row."""
    longest = max(len(case.bounds) for case in cases)
    places = [[*range(len(case.bounds)), *[len(case.bounds) - 1] * (longest - len(case.bounds))] for case in cases]
    head = nn.Linear(cases[0].rows.shape[1], longest * len(cases), dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.cat([case.rows[place] for case, place in zip(cases, places, strict=True)]))
        head.bias.copy_(-torch.cat([case.bounds[place] for case, place in zip(cases, places, strict=True)]))
    if longest == 1:
        return [head]
    return [head, nn.Unflatten(1, (len(cases), 1, longest)), nn.MaxPool2d((1, longest)), nn.Flatten(1)]


def _inside(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return the innermost corners that float32 has; the nearest numbers where a side has none."""
    low, high = lower.float(), upper.float()
    low = torch.where(low.double() < lower, torch.nextafter(low, high.new_tensor(torch.inf)), low)
    high = torch.where(high.double() > upper, torch.nextafter(high, high.new_tensor(-torch.inf)), high)
    empty = low > high
    return torch.where(empty, lower.float(), low), torch.where(empty, lower.float(), high)
