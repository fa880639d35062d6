"""The value of a subproblem to cut: scores from the pass that bounded it, then the bounds of both parts themselves.

Two scores propose candidates. The *gap* of a neuron is what its lines lose where it would be cut: the distance of the
line that the pass follows from the function there, times the coefficient. For a ReLU that is the intercept score; BaBSR
adds how the bias in front of it would count. Of all candidates, the one is cut whose worse part gets the best bound.
Source: Bunel et al. (2020), arXiv:1909.06588, section 4.2 (BaBSR); De Palma et al. (2021), arXiv:2104.06718, section 3
(filtered smart branching).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hydrabench.bounds.backward import linear
from hydrabench.bounds.exact.walk import Walk
from hydrabench.bounds.program.operations import Elementwise, Relaxed
from hydrabench.bounds.program.relu import Relu, relaxation
from hydrabench.bounds.relaxations import Sloped

TINY = 1e-30  # score of what is unstable but seems to gain nothing
PROPOSED = 4  # candidates that each score proposes
FEW_INPUTS = 20  # an image of so few entries is cut itself, too


@dataclass(eq=False)
class CutScores:
    """CutScores of the places of R subproblems, collected on their way back.

    gap, biased: (R, size), 0 where a cut gains nothing.
    """

    walk: Walk

    def __post_init__(self) -> None:
        self.gap, self.biased = torch.zeros_like(self.walk.lower), torch.zeros_like(self.walk.lower)

    @cached_property
    def cuts(self) -> Tensor:
        """Return the cut of each place, (R, size); NaN where it gains nothing."""
        places, walk = self.walk.root.places, self.walk
        found = torch.full_like(walk.lower, torch.nan)
        for _, node, operation in places.relaxed:
            points = _cuts(operation, places.corners(walk.lower, walk.upper, node))
            for source, point in zip(node.inputs, points, strict=True):
                here = found[:, places.parts[source]]
                here.copy_(torch.where(here.isnan(), point.flatten(1), here))
        here = found[:, places.parts[0]]
        here.copy_(torch.where(here.isnan(), torch.lerp(walk.lower, walk.upper, 0.5)[:, places.parts[0]], here))
        return found.masked_fill(~((walk.lower < found) & (found < walk.upper)), torch.nan)

    @cached_property
    def plain(self) -> set[int]:
        """Values whose entries are scored by their width alone: what neither is elementwise nor linear takes them."""
        relaxed = self.walk.root.places.relaxed
        return {
            source for _, node, operation in relaxed if not isinstance(operation, Elementwise) for source in node.inputs
        }

    def observe(self, position: int, rows: Tensor) -> None:
        """See the coefficients of value `position`, (R, *value), before they are carried on."""
        if position in self.plain:
            self._add(self.gap, position, rows.abs() * self._widths(position))
        if position and isinstance(operation := self.walk.root.nodes[position - 1].operation, Elementwise):
            self._observe_neurons(position, operation, rows)

    def _observe_neurons(self, position: int, operation: Elementwise, rows: Tensor) -> None:
        root = self.walk.root
        number = root.nodes[position - 1].inputs[0]
        lower, upper = root.places.corners(self.walk.lower, self.walk.upper, root.nodes[position - 1])
        lines, point = operation.lines(lower, upper), root.places.value(self.cuts, number)
        assert isinstance(lines, Sloped), "elementwise operations have slopes"
        height = operation.apply(point)
        low = 0.0 if lines.low is None else lines.low
        high = 0.0 if lines.high is None else lines.high
        below, above = height - lines.below[0] * point - low, lines.above[0] * point + high - height
        positive, negative = rows.clamp(min=0), -rows.clamp(max=0)
        self._add(self.gap, number, positive * below + negative * above)
        if isinstance(operation, Relu):
            self._add(self.biased, number, self._babsr(number, rows, lower, upper))

    def _babsr(self, number: int, rows: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Score fixing the phase of a ReLU: |min(A b (s - 1), A b s) + min(A, 0) t| with its chord s z + t."""
        root = self.walk.root
        producer = root.nodes[number - 1] if number else None
        bias = None
        if producer is not None and not isinstance(producer.operation, Relaxed):
            bias = linear(producer).constant(
                [rows.new_zeros(1, *root.places.shapes[source]) for source in producer.inputs]
            )
        _, slope, high = relaxation(lower, upper)
        found = rows.clamp(max=0) * high
        if bias is not None:
            product = rows * bias
            found = found + torch.minimum(product * (slope - 1), product * slope)
        return found.abs()

    def _add(self, score: Tensor, number: int, found: Tensor) -> None:
        part = self.walk.root.places.parts[number]
        score[:, part] += found.flatten(1).nan_to_num(0.0, 0.0, 0.0)

    def _widths(self, number: int) -> Tensor:
        places = self.walk.root.places
        return (places.value(self.walk.upper, number) - places.value(self.walk.lower, number)) / 2

    def candidates(self, image_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places worth a cut, (R, C), -1 for none, and the points to cut them at.

        Args: image_rows: coefficients of the image, (R, *image).
        """
        neurons = ~self.cuts.isnan()
        image = self.walk.root.places.parts[0]
        if 0 not in self.plain:
            neurons[:, image] = False
        inputs = torch.zeros_like(self.gap)
        inputs[:, image] = image_rows.flatten(1).abs() * self._widths(0).flatten(1) + TINY
        inputs = inputs.masked_fill(self.cuts.isnan(), 0.0)
        if self.walk.root.places.shapes[0].numel() > FEW_INPUTS:
            inputs = inputs.masked_fill(neurons.any(1, keepdim=True), 0.0)
        gap, biased = ((score + TINY).masked_fill(~neurons, 0.0) for score in (self.gap, self.biased))
        places = []
        for score in (gap, biased, inputs):
            most = min(PROPOSED, score.shape[1])
            found, place = _quantised(score).topk(most, dim=1)
            places.append(place.masked_fill(found <= 0, -1))
            for other in (gap, biased, inputs):
                other.scatter_(1, place, 0.0)
        chosen = torch.cat(places, 1)
        return chosen, self.cuts.gather(1, chosen.clamp(min=0))


def _quantised(score: Tensor) -> Tensor:
    """CutScores without their last bits, so that rounding does not decide between equal ones; the first place wins."""
    return score.to(torch.float32).to(score.dtype)


def _cuts(operation: Relaxed, corners: Sequence[Tensor]) -> list[Tensor]:
    """Return the cut of each value of an operation: the kink nearest to the middle, or that; NaN where it is linear."""
    found = []
    for lower, upper, unstable in zip(corners[::2], corners[1::2], operation.undecided(*corners), strict=True):
        cut = middle = torch.lerp(lower, upper, 0.5)
        reach = torch.full_like(middle, torch.inf)
        for kink in operation.kinks:
            far = (middle - kink).abs()
            nearer = (lower < kink) & (kink < upper) & (far < reach)
            cut, reach = torch.where(nearer, kink, cut), torch.where(nearer, far, reach)
        found.append(cut.masked_fill(~unstable, torch.nan))
    return found
