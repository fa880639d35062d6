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
Source: Singh et al. (2019), "An abstract domain for certifying neural
networks", section 4.4, widens the same sums.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydrabench.bounds.backward import LIVE, MEMORY, carried_back, linear
from hydrabench.bounds.box import Interval
from hydrabench.bounds.outward import MORE, TINY, down, growth, up
from hydrabench.bounds.prepared import Prepared, prepared
from hydrabench.bounds.program.linear import Scale
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.program.program import shapes_of
from hydrabench.bounds.relaxations import Lines
from hydrabench.bounds.rounding import MeasuredNode, measured
from hydrabench.bounds.specification import specification
from hydrabench.errors import lookup
from hydrabench.masking import make_plain
from hydrabench.threat import PIXEL_MAX, PIXEL_MIN, float_above


def sound_margins(
    network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: Fraction, *, kind: str, memory: int = MEMORY
) -> Tensor:
    """Lower bounds of min over j != y of f_y - f_j over the L-infinity ball, true in exact arithmetic.

    Args:
        network: made of the layers in `program.convert.LAYERS`, in eval mode, returning logits (B, K), or what
            `prepared` read of it; left as it is.
        x: images, (B, C, H, W), in [0, 1], float32 or float64.
        y: true classes, (B,), int64, in [0, K).
        epsilon: exact radius in pixel units, >= 0; the ball is clipped to [0, 1].
        kind: a method, one of `STOPS`.
        memory: bytes to keep to, as far as one image does.
    Returns: (B,), float64; NaN where nothing is known, because numbers are too large for float64 or NaN themselves.
    Raises: ConfigError for another method, UnsupportedLayerError for a layer without a rule, ValueError for a negative
        radius, batch norm in training mode or an output that is not (B, K) with K >= 2.
    Source: as for `ibp.interval_margins` and `crown.crown_ibp_margins`.
    """
    return _margins(network, x, y, epsilon, kind, memory=memory)


def deployed_margins(network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: Fraction, *, kind: str) -> Tensor:
    """Lower bounds of the margins between the logits that the network gives in the precision of `x`, as it rounds them.

    Args:
        network: as for `sound_margins`, its parameters of the type of `x`.
        x, y, epsilon, kind: as for `sound_margins`.
    Returns: (B,), float64; NaN where nothing is known, because numbers may be too large for the type of `x`, too.
    Raises: what `sound_margins` raises.
    Source: Higham (2002), section 3.1.
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
        nodes = measured(as_stored_in_float64(network), x.double())
        shapes = shapes_of(nodes, x.double())
        _, rows, _ = specification(None, y, x.new_empty(1, dtype=torch.float64).expand(0, *shapes[-1]))
        together = max(1, memory // (8 * LIVE * rows.shape[1] * max(shape.numel() for shape in shapes)))
        found = [rows.new_empty(0)]
        for start in range(0, len(y), together):
            part = slice(start, start + together)
            passed = RoundedPass(nodes, Enclosure.ball(x[part], epsilon), rounding)
            found.append(passed.lowest(rows[part], stop_at(nodes)).min(1).values)
    return torch.cat(found)


def as_stored_in_float64(network: nn.Module | Prepared) -> nn.Module | Prepared:
    """Return a network of float64 whose weights are the stored numbers."""
    if isinstance(network, nn.Module):
        return _as_stored(network).double()
    return network.once("as stored, in float64", lambda: prepared(_as_stored(network.network).double()))


def _as_stored(network: nn.Module) -> nn.Module:
    """A copy with the weights that its layers apply, which parametrizations compute in the network's own precision."""
    network = copy.deepcopy(network)
    for module in [*network.modules()]:
        if parametrize.is_parametrized(module):
            make_plain(module)
    return network


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
        x, radius = x.double(), float_above(epsilon)
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


@dataclass(eq=False)
class RoundedPass:
    """Intervals through a program, and what a pass backward needs.

    rounding: the type to which the network rounds its values, or None for exact arithmetic. boxes: of every value.
    lost: what rounding may take from a function of a node's result when the node is substituted into it, for each unit
    of its coefficients, (B, ...). lines: around each operation that is not linear.
    """

    nodes: Sequence[MeasuredNode]
    box: Enclosure
    rounding: torch.dtype | None = None
    boxes: dict[int, Enclosure] = field(default_factory=dict)
    lost: dict[int, Tensor] = field(default_factory=dict)
    lines: dict[int, Lines] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.boxes[0] = self.box
        for number, node in enumerate(self.nodes, start=1):
            if isinstance(node.operation, Relaxed):
                self._relax(number, node, node.operation)
            else:
                self._map(number, node)

    def _map(self, number: int, node: MeasuredNode) -> None:
        """Send boxes through a linear operation; what is computed for W c + b is off by share (|W| |c| + |b|)."""
        taken, operation = [self.boxes[source] for source in node.inputs], linear(node)
        share = growth(node.terms, torch.float64)
        found = operation.interval(*(Interval(box.center, box.radius) for box in taken))
        magnitude = operation.magnitude(*(box.size() for box in taken))
        self.lost[number] = share * magnitude + node.terms * TINY + self._own_rounding(node, magnitude)
        overflow = found.center - found.center  # 0, or NaN
        self.boxes[number] = Enclosure(found.center, found.width + (share * found.width + self.lost[number]) + overflow)

    def _own_rounding(self, node: MeasuredNode, magnitude: Tensor) -> Tensor | float:
        """Return how far a computed result can be from that of exact arithmetic on the same values."""
        if self.rounding is None:
            return 0.0
        kind = torch.finfo(self.rounding)
        found = growth(node.forward, self.rounding) * magnitude + node.forward * kind.tiny
        return found.masked_fill(~(2 * magnitude < kind.max), torch.nan)

    def _relax(self, number: int, node: MeasuredNode, operation: Relaxed) -> None:
        """Draw lines around an operation that is not linear; what the network itself rounds widens box and lines."""
        taken = [self.boxes[source] for source in node.inputs]
        corners = [corner for box in taken for corner in (box.lower(), box.upper())]
        own: Tensor | float = 0.0
        if self.rounding is not None and operation.ulps:
            kind, size = torch.finfo(self.rounding), operation.size(*corners)
            own = operation.slack(kind.eps, kind.tiny, *corners)
            own = (own * torch.ones_like(size)).masked_fill(~(2 * size < kind.max), torch.nan)
        lower, upper = operation.rounded_box(*corners)
        if operation.ulps:
            lower, upper = down(lower - own), up(upper + own)
        self.boxes[number] = Enclosure.between(lower, upper)
        lines = self.lines[number] = operation.rounded_lines(*corners)
        reach = lines.reach(*(box.size() for box in taken))
        few, sums = (growth(count + MORE, torch.float64) for count in (lines.sums, reach[0].numel()))
        self.lost[number] = few * reach + sums * lines.height().view_as(reach) + own

    def lowest(self, rows: Tensor, stop: int) -> Tensor:
        """Smallest values of functions of the last value: (B, S), from rows (B, S, K) that are exact.

        Args:
            stop: the value to carry them back to, over whose box they are minimised.
        """
        none = rows.new_zeros(rows.shape[:2])
        sums = {"offset": none, "lost": none, "size": none}

        def substitute(position: int, rows: Tensor, _waiting: dict[int, Tensor]) -> Sequence[Tensor | None]:
            node = self.nodes[position - 1]
            found, gain = self._substituted(position, node, rows)
            underflow = sum(self.boxes[source].size().flatten(1).sum(1, keepdim=True) for source in node.inputs)
            lost = weighed(rows, self.lost[position]) + (node.terms + MORE) * TINY * (1 + underflow)
            sums["lost"] = sums["lost"] + lost
            if gain is not None:
                sums["offset"], sums["size"] = sums["offset"] + gain, sums["size"] + gain.abs()
            return found

        rows = carried_back(self.nodes, len(self.nodes), rows, substitute, lambda _, one, other: one + other, stop=stop)
        rows, box = rows.flatten(2), self.boxes[stop]
        center = torch.bmm(rows, box.center.flatten(1).unsqueeze(2)).squeeze(2)
        radius = torch.bmm(rows.abs(), box.radius.flatten(1).unsqueeze(2)).squeeze(2)
        share = growth(rows.shape[2] + len(self.nodes) + MORE, torch.float64)
        lost = (sums["lost"] + share * (sums["size"] + weighed(rows, box.size())) + TINY * rows.shape[2]) * (1 + share)
        return down(sums["offset"] + (center - radius) - lost)

    def _substituted(
        self, number: int, node: MeasuredNode, rows: Tensor
    ) -> tuple[Sequence[Tensor | None], Tensor | None]:
        shapes = [self.boxes[source].center.shape for source in node.inputs]
        if number in self.lines:
            return self.lines[number].back(rows, shapes)
        found, gain = linear(node).back(rows.flatten(0, 1), shapes), linear(node).gain(rows.flatten(0, 1), shapes)
        wide = [None if part is None else torch.unflatten(part, 0, rows.shape[:2]) for part in found]
        return wide, None if gain is None else gain.view(rows.shape[:2])


def weighed(rows: Tensor, amounts: Tensor) -> Tensor:
    """At least the exact sums of |rows|, (B, S, ...), times amounts >= 0, (B, ...): (B, S)."""
    found = torch.bmm(rows.abs().flatten(2), amounts.flatten(1).unsqueeze(2)).squeeze(2)
    return found * (1 + growth(amounts[0].numel() + MORE, torch.float64))


def _before_last_linear(nodes: Sequence[MeasuredNode]) -> int:
    """The value in front of the last linear layer and the batch norm behind it, or the last one if there is none."""
    last = len(nodes)
    while last and isinstance(nodes[last - 1].operation, Scale):
        last -= 1
    return last - 1 if last and nodes[last - 1].operation.matrix is not None else len(nodes)


# How far back to the input the margins are carried before they are minimised over a box.
STOPS: dict[str, Callable[[Sequence[MeasuredNode]], int]] = {
    "ibp": _before_last_linear,
    "crown-ibp": lambda _nodes: 0,
}
