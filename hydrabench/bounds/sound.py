"""Bounds that hold in spite of rounding: float64 passes in which everything is rounded away from the claim.

`sound_margins` speaks of real arithmetic: of the network whose weights, statistics and pixels are the stored numbers
taken exactly, its layers computed without rounding, on every image of the exact ball. `deployed_margins` speaks of what
a device makes of it in float32: every layer adds what its own rounding can do to its results, in any order of
summation, fused or not, with batch norm folded or not, and ReLUs and maxima round nothing. It does not cover Winograd
and FFT convolutions, operands rounded to TF32 or less, nor a batch norm that overflows or underflows between its steps.
Every sum of the passes themselves is widened by what rounding can do to it in any order (see `rounding`), so neither
claim depends on the machine, the batch or the library. They assume rounding to nearest with gradual underflow, as torch
has it by default, and convolutions that are sums of products: in float64 torch computes them on the CPU by unfolding
and matrix products, and does so on GPUs, too, while cuDNN, which has an FFT, is switched off here.
Source: reference/field.md, section 5.3, item 6; Singh et al. (2019), "An abstract domain for certifying neural
networks", section 4.4, widens the same sums.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydrabench.bounds import crown, interval
from hydrabench.bounds.crown import LIVE, MEMORY, relaxation
from hydrabench.bounds.graph import shapes_of
from hydrabench.bounds.interval import Interval, Place
from hydrabench.bounds.operations import Dense, MaxPool, Scale
from hydrabench.bounds.pooling import Lines, along, max_lines, windows
from hydrabench.bounds.prepared import Prepared, prepared
from hydrabench.bounds.problem import specification
from hydrabench.bounds.rounding import MORE, MeasuredNode, growth, measured
from hydrabench.errors import lookup
from hydrabench.threat import PIXEL_MAX, PIXEL_MIN

ULP = 2.0**-52  # twice the most that rounding to nearest does, relative to its result
TINY = 2.0**-1000  # more than underflow can do to a product


def sound_margins(
    network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: Fraction, *, kind: str, memory: int = MEMORY
) -> Tensor:
    """Lower bounds of min over j != y of f_y - f_j over the L-infinity ball, true in exact arithmetic.

    Args:
        network: made of the layers in `layers.LAYERS`, in eval mode, returning logits (B, K), or what `prepared` read
            of it; left as it is.
        x: images, (B, C, H, W), in [0, 1], float32 or float64.
        y: true classes, (B,), int64, in [0, K).
        epsilon: exact radius in pixel units, >= 0; the ball is clipped to [0, 1].
        kind: a method, one of `STOPS`.
        memory: bytes to keep to, as far as one image does.
    Returns: (B,), float64; NaN where nothing is known, because numbers are too large for float64 or NaN themselves.
    Raises: ConfigError for another method, UnsupportedLayerError for a layer without a rule, ValueError for a negative
        radius, batch norm in training mode or an output that is not (B, K) with K >= 2.
    Source: as for `margins.interval_margins` and `margins.crown_ibp_margins`.
    """
    return _margins(network, x, y, epsilon, kind, memory=memory)


def deployed_margins(network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: Fraction, *, kind: str) -> Tensor:
    """Lower bounds of the margins between the logits that the network gives in the precision of `x`, as it rounds them.

    Args:
        network: as for `sound_margins`, its parameters of the type of `x`.
        x, y, epsilon, kind: as for `sound_margins`.
    Returns: (B,), float64; NaN where nothing is known, because numbers may be too large for the type of `x`, too.
    Raises: what `sound_margins` raises.
    Source: reference/field.md, section 5.3, item 6; Higham (2002), section 3.1.
    """
    return _margins(network, x, y, epsilon, kind, rounding=x.dtype)


def _margins(
    network: nn.Module | Prepared,
    x: Tensor,
    y: Tensor,
    epsilon: Fraction,
    kind: str,
    *,
    rounding: torch.dtype | None = None,
    memory: int = MEMORY,
) -> Tensor:
    stop_at = lookup("sound method", STOPS, kind)
    if not epsilon >= 0:
        raise ValueError(f"out of range: {epsilon=}, must be >= 0")
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        nodes = measured(_wide(network), x.double())
        shapes = shapes_of(nodes, x.double())
        _, rows, _ = specification(None, y, x.new_empty(1, dtype=torch.float64).expand(0, *shapes[-1]))
        together = max(1, memory // (8 * LIVE * rows.shape[1] * max(shape.numel() for shape in shapes)))
        found = [rows.new_empty(0)]
        for start in range(0, len(y), together):
            part = slice(start, start + together)
            passed = Pass(nodes, Enclosure.ball(x[part], epsilon), rounding)
            found.append(passed.lowest(rows[part], stop_at(nodes)).min(1).values)
    return torch.cat(found)


def _wide(network: nn.Module | Prepared) -> nn.Module | Prepared:
    if isinstance(network, nn.Module):
        return _as_stored(network).double()
    return network.once("as stored, in float64", lambda: prepared(_as_stored(network.network).double()))


def _as_stored(network: nn.Module) -> nn.Module:
    """A copy with the weights that its layers apply, which parametrizations compute in the network's own precision."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if parametrize.is_parametrized(module):
            for name in [*cast("nn.ModuleDict", module.parametrizations)]:
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return network


def up(rounded: Tensor) -> Tensor:
    """At least the exact sum, or normal product, that was rounded to `rounded`; 0 and subnormal sums are exact."""
    return rounded + rounded.abs() * ULP


def down(rounded: Tensor) -> Tensor:
    """At most the exact sum, or normal product, that was rounded to `rounded`."""
    return rounded - rounded.abs() * ULP


@dataclass(frozen=True, eq=False)
class Enclosure:
    """A set of values that holds every exact one: within `radius` of `center`, both (B, ...)."""

    center: Tensor
    radius: Tensor

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Enclosure:
        """Everything from `lower` to `upper`. Any center will do, as the radius is measured from it."""
        center = torch.lerp(lower, upper, 0.5)
        return cls(center, up(torch.maximum(upper - center, center - lower)))

    @classmethod
    def ball(cls, x: Tensor, epsilon: Fraction) -> Enclosure:
        """All images within the exact radius of images, clipped to the pixel range."""
        x, radius = x.double(), float(epsilon)
        if Fraction(radius) < epsilon:
            radius = math.nextafter(radius, math.inf)
        corners = down(x - radius), up(x + radius)
        return cls.between(*(corner.clamp(PIXEL_MIN, PIXEL_MAX) for corner in corners))

    def lower(self) -> Tensor:
        """Nothing in the set is below this."""
        return down(self.center - self.radius)

    def upper(self) -> Tensor:
        """Nothing in the set is above this."""
        return up(self.center + self.radius)

    def size(self) -> Tensor:
        """The absolute values in the set, but for one rounding, are at most this."""
        return self.center.abs() + self.radius


@dataclass(frozen=True, eq=False)
class Slopes:
    """Lines around a ReLU: below · z, and slope · z + offset above it; all of the shape of its values."""

    below: Tensor
    slope: Tensor
    offset: Tensor


@dataclass(eq=False)
class Pass:
    """Intervals through a program, and what a pass backward needs.

    rounding: the type to which the network rounds its values, or None for exact arithmetic. boxes: of every value.
    lost: what rounding may take from a function of a node's result when the node is substituted into it, for each unit
    of its coefficients, (B, ...). lines: around each ReLU and each maximum.
    """

    nodes: Sequence[MeasuredNode]
    box: Enclosure
    rounding: torch.dtype | None = None
    boxes: dict[int, Enclosure] = field(default_factory=dict)
    lost: dict[int, Tensor] = field(default_factory=dict)
    lines: dict[int, Slopes | Lines] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.boxes[0] = self.box
        for number, node in enumerate(self.nodes, start=1):
            if node.operation.relaxed:
                self._relax(number, node)
            else:
                self._map(number, node)

    def _map(self, number: int, node: MeasuredNode) -> None:
        """Send boxes through a linear operation; what is computed for W c + b is off by share (|W| |c| + |b|)."""
        taken = [self.boxes[source] for source in node.inputs]
        share = growth(node.terms, torch.float64)
        found = interval.RULES[type(node.operation)](node.operation, *(Interval(b.center, b.radius) for b in taken))
        magnitude = node.absolute.apply(*(box.size() for box in taken))
        self.lost[number] = share * magnitude + node.terms * TINY + self._own_rounding(node, magnitude)
        overflow = found.center - found.center  # 0, or NaN
        self.boxes[number] = Enclosure(found.center, found.width + (share * found.width + self.lost[number]) + overflow)

    def _own_rounding(self, node: MeasuredNode, magnitude: Tensor) -> Tensor | float:
        """How far a result that the network computes can be from that of exact arithmetic on the same values."""
        if self.rounding is None:
            return 0.0
        kind = torch.finfo(self.rounding)
        found = growth(node.forward, self.rounding) * magnitude + node.forward * kind.tiny
        return found.masked_fill(~(2 * magnitude < kind.max), torch.nan)

    def _relax(self, number: int, node: MeasuredNode) -> None:
        """Draw lines around a ReLU or a maximum; both rise with what they take, and rounding has no part in them."""
        box = self.boxes[node.inputs[0]]
        lower, upper = box.lower(), box.upper()
        self.boxes[number] = Enclosure.between(node.operation.apply(lower), node.operation.apply(upper))
        lines: Slopes | Lines
        size, few = box.size(), growth(MORE, torch.float64)
        if isinstance(node.operation, MaxPool):
            lines = maximum_lines(node.operation, lower, upper)
            size, few = node.operation.apply(size), growth(2 * math.prod(node.operation.kernel) + MORE, torch.float64)
        else:
            lines = relu_lines(lower, upper)
        self.lines[number] = lines
        sums = growth(size[0].numel() + MORE, torch.float64)
        self.lost[number] = few * size + sums * lines.offset.abs().view_as(size)

    def lowest(self, rows: Tensor, stop: int) -> Tensor:
        """Smallest values of functions of the last value: (B, S), from rows (B, S, K) that are exact.

        Args:
            stop: the value to carry them back to, over whose box they are minimised.
        """
        waiting = {len(self.nodes): rows}
        offset = lost = size = rows.new_zeros(rows.shape[:2])
        for number in range(len(self.nodes), stop, -1):
            node, rows = self.nodes[number - 1], waiting.pop(number)
            found, gain = self._substituted(number, node, rows)
            underflow = sum(self.boxes[source].size().flatten(1).sum(1, keepdim=True) for source in node.inputs)
            lost = lost + weighed(rows, self.lost[number]) + (node.terms + MORE) * TINY * (1 + underflow)
            if gain is not None:
                offset, size = offset + gain, size + gain.abs()
            for source in node.inputs:
                waiting[source] = waiting[source] + found if source in waiting else found
        rows, box = waiting[stop].flatten(2), self.boxes[stop]
        center = torch.bmm(rows, box.center.flatten(1).unsqueeze(2)).squeeze(2)
        radius = torch.bmm(rows.abs(), box.radius.flatten(1).unsqueeze(2)).squeeze(2)
        share = growth(rows.shape[2] + len(self.nodes) + MORE, torch.float64)
        lost = (lost + share * (size + weighed(rows, box.size())) + TINY * rows.shape[2]) * (1 + share)
        return down(offset + (center - radius) - lost)

    def _substituted(self, number: int, node: MeasuredNode, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        shape = self.boxes[node.inputs[0]].center.shape
        lines = self.lines.get(number)
        if isinstance(node.operation, MaxPool) and isinstance(lines, Lines):
            return along(node.operation, rows, lines, shape)
        if isinstance(lines, Slopes):
            negative = rows < 0
            found = rows * torch.where(negative, lines.slope.unsqueeze(1), lines.below.unsqueeze(1))
            gain = torch.bmm(rows.clamp(max=0).flatten(2), lines.offset.flatten(1).unsqueeze(2)).squeeze(2)
            return found, gain
        return crown.RULES[type(node.operation)](node.operation, rows, Place(shape, None))


def relu_lines(lower: Tensor, upper: Tensor) -> Slopes:
    """Lines around max(z, 0) for every exact z in [lower, upper].

    Any line through 0 with a slope in [0, 1] lies below. With s the rounded slope of the chord, s z + t - max(z, 0) is
    concave in z, so it is positive between the ends if it is at both: t >= -s l and t >= (1 - s) u, both rounded up.
    """
    below, slope, _ = relaxation(lower, upper)
    on, off = lower >= 0, upper <= 0
    slope = slope.clamp(0, 1).masked_fill(on, 1).masked_fill(off, 0)
    offset = torch.maximum(up(-slope * lower), up(up(1 - slope) * upper)) + TINY
    return Slopes(below.masked_fill(on, 1).masked_fill(off, 0), slope, offset.masked_fill(on | off, 0))


def maximum_lines(operation: MaxPool, lower: Tensor, upper: Tensor) -> Lines:
    """The lines of `pooling.max_lines` with offsets for which they hold, whatever value they follow with which slope.

    Below any value of the window lies below its maximum. Above, with r no less than all others, s z + o - max(z, r) is
    concave in z, so it is positive if it is at both ends l and u of z: o >= max(l, r) - s l and o >= max(u, r) - s u.
    """
    lines = max_lines(operation, Interval.between(lower, upper))
    slope = lines.slope.clamp(0, 1)
    above = lines.above.unsqueeze(2)
    ends = [windows(operation, corner).gather(2, above).squeeze(2) for corner in (lower, upper)]
    rest = windows(operation, upper).scatter(2, above, -torch.inf).amax(2)
    offset = torch.maximum(*(up(torch.maximum(end, rest) + up(-slope * end)) for end in ends))
    return Lines(lines.below, lines.above, slope, torch.where(slope == 1, offset, offset + TINY))


def weighed(rows: Tensor, amounts: Tensor) -> Tensor:
    """At least the exact sums of |rows|, (B, S, ...), times amounts >= 0, (B, ...): (B, S)."""
    found = torch.bmm(rows.abs().flatten(2), amounts.flatten(1).unsqueeze(2)).squeeze(2)
    return found * (1 + growth(amounts[0].numel() + MORE, torch.float64))


def _before_last_linear(nodes: Sequence[MeasuredNode]) -> int:
    """The value in front of the last linear layer and the batch norm behind it, or the last one if there is none."""
    last = len(nodes)
    while last and isinstance(nodes[last - 1].operation, Scale):
        last -= 1
    return last - 1 if last and isinstance(nodes[last - 1].operation, Dense) else len(nodes)


# How far back to the input the margins are carried before they are minimised over a box.
STOPS: dict[str, Callable[[Sequence[MeasuredNode]], int]] = {
    "ibp": _before_last_linear,
    "crown-ibp": lambda _nodes: 0,
}
