"""A network over a box as a mixed-integer program: one variable for every entry of every value.

A linear operation is a block of equations. A piecewise linear function f on [l, u], with points l = p_0 < ... < p_n = u
so that f is linear from each to the next, is written with shares t_i in [0, 1] of the way along piece i:

    z = l + sum_i (p_i - p_(i-1)) t_i,    f(z) = f(l) + sum_i (f(p_i) - f(p_(i-1))) t_i,
    t_i >= d_i >= t_(i+1)    with d_i in {0, 1}: a piece begins only where the one before it ends.

Its relaxation, d_i in [0, 1], is the convex hull of f; for ReLU these are the big-M constraints with M from l and u.
The maximum y of entries z_i in [l_i, u_i] is one of them, that with d_i = 1:

    sum_i d_i = 1,    z_i <= y <= z_i + (1 - d_i) (max_(j != i) u_j - l_i).

Source: Tjeng et al. (2019), arXiv:1711.07356, section 4; Vielma (2015), SIAM Review 57(1), section 4, for the shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from hydrabench.bounds.exact.root import Root
from hydrabench.bounds.program.activations import PiecewiseLinear
from hydrabench.bounds.program.operations import Elementwise, Linear
from hydrabench.bounds.program.pooling import MaxPool
from hydrabench.bounds.program.program import Node
from hydrabench.bounds.program.relu import Relu
from hydrabench.errors import UnsupportedLayerError

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
TOGETHER = 256  # rows of a matrix that are computed together


def require_piecewise_linear(nodes: Sequence[Node]) -> None:
    """Refuse a program with an operation that has no formulation.

    Raises: UnsupportedLayerError naming the first one.
    """
    for node in nodes:
        if not isinstance(node.operation, Linear | Relu | PiecewiseLinear | MaxPool):
            raise UnsupportedLayerError(
                f"engine milp has no exact formulation for {type(node.operation).__name__}: it takes linear "
                "operations, piecewise linear activations (ReLU, LeakyReLU, hardtanh, abs) and max pooling; "
                "choose --engine branch-and-bound"
            )


@dataclass(frozen=True, eq=False)
class LinearSystem:
    """A linear operation on flattened values: sum_i parts[i] @ x_i + constant."""

    parts: list[sparse.csr_array | None]
    constant: Floats


def linear_systems(root: Root) -> dict[int, LinearSystem]:
    """Return the matrices of all linear operations of a program, by the number of their result."""
    shapes = root.places.shapes
    return {
        number: _system(node.operation, [shapes[source] for source in node.inputs], shapes[number], root.lower)
        for number, node in enumerate(root.nodes, start=1)
        if isinstance(node.operation, Linear)
    }


def _system(operation: Linear, before: Sequence[torch.Size], after: torch.Size, like: Tensor) -> LinearSystem:
    """Carry the unit vectors of the result back to the values, some at a time."""
    count = after.numel()
    found: list[list[sparse.csr_array]] = [[] for _ in before]
    for start in range(0, count, TOGETHER):
        rows = torch.eye(count, dtype=like.dtype, device=like.device)[start : start + TOGETHER]
        back = operation.back(rows.view(len(rows), *after), [torch.Size((1, *shape)) for shape in before])
        for place, part in enumerate(back):
            if part is not None:
                found[place].append(sparse.csr_array(part.reshape(len(rows), -1).cpu().numpy()))
    constant = operation.constant([like.new_zeros(1, *shape) for shape in before])
    vector = np.zeros(count) if constant is None else constant.expand(1, *after).reshape(-1).cpu().numpy()
    return LinearSystem([sparse.vstack(parts, format="csr") if parts else None for parts in found], vector)


@dataclass(eq=False)
class Formulation:
    """A mixed-integer program whose variables are appended in blocks; `values` are the columns of each value.

    lower, upper, integral: of variables, in blocks. entries: row, column and coefficient of the matrix, in blocks.
    low, high: between which each row lies, in blocks.
    """

    values: list[Numbers] = field(default_factory=list)
    lower: list[Floats] = field(default_factory=list)
    upper: list[Floats] = field(default_factory=list)
    integral: list[NDArray[np.bool_]] = field(default_factory=list)
    entries: list[tuple[Numbers, Numbers, Floats]] = field(default_factory=list)
    low: list[Floats] = field(default_factory=list)
    high: list[Floats] = field(default_factory=list)
    columns: int = 0
    rows: int = 0

    def variables(self, lower: Floats, upper: Floats, *, integral: bool = False) -> Numbers:
        """Append variables between bounds and return their columns."""
        first, self.columns = self.columns, self.columns + len(lower)
        self.lower.append(lower)
        self.upper.append(upper)
        self.integral.append(np.full(len(lower), integral))
        return np.arange(first, self.columns)

    def constrain(self, low: Floats, high: Floats) -> Numbers:
        """Append empty rows between bounds and return their numbers."""
        first, self.rows = self.rows, self.rows + len(low)
        self.low.append(low)
        self.high.append(high)
        return np.arange(first, self.rows)

    def put(self, rows: Numbers, columns: Numbers, coefficients: Floats | float) -> None:
        """Add coefficients, one for each pair of a row and a column."""
        self.entries.append((rows, columns, np.broadcast_to(np.asarray(coefficients, float), rows.shape)))

    def matrix(self) -> sparse.csr_array:
        """Return the coefficients of all rows, (rows, columns)."""
        none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        rows, columns, coefficients = (np.concatenate(part) for part in zip(none, *self.entries, strict=True))
        return sparse.coo_array((coefficients, (rows, columns)), shape=(self.rows, self.columns)).tocsr()


def formulation_of(root: Root, image: int, systems: dict[int, LinearSystem]) -> Formulation:
    """Write the program down for the ball around one image, whose corners `root` has.

    Raises: AssertionError for what `require_piecewise_linear` refuses.
    """
    found = Formulation()
    found.values.append(found.variables(*_corners(root, image, 0)))
    for number, node in enumerate(root.nodes, start=1):
        size = root.places.shapes[number].numel()
        bounds = _corners(root, image, number) if number in root.places.parts else _unbounded(size)
        result = found.variables(*bounds)
        found.values.append(result)
        if isinstance(node.operation, Linear):
            _write_linear(found, systems[number], node.inputs, result)
            continue
        (source,) = node.inputs
        corners = root.places.corners(root.lower[image : image + 1], root.upper[image : image + 1], node)
        if isinstance(node.operation, MaxPool):
            _write_maxima(found, _windows(node.operation, *corners), found.values[source], result)
        else:
            assert isinstance(node.operation, Elementwise), "refused before"
            _write_pieces(found, _breakpoints(node.operation, *corners), found.values[source], result)
    return found


def _write_linear(found: Formulation, system: LinearSystem, inputs: Sequence[int], result: Numbers) -> None:
    """Append sum_i A_i x_i - y = -b."""
    rows = found.constrain(-system.constant, -system.constant)
    found.put(rows, result, -1.0)
    for source, part in zip(inputs, system.parts, strict=True):
        if part is not None:
            entries = part.tocoo()
            found.put(rows[entries.row], found.values[source][entries.col], entries.data)


def _write_pieces(found: Formulation, points: tuple[Floats, Floats], taken: Numbers, result: Numbers) -> None:
    """Append z = l + lengths · t and y = f(l) + rises · t, and the order of the shares t, for functions f of entries.

    Args: points: p_i and f(p_i), (n + 1, entries); where two are equal, there is no piece between them.
    """
    (places, heights), shares = points, _shares(found, points[0])
    equations = [found.constrain(part[0], part[0]) for part in (places, heights)]
    for rows, columns, part in zip(equations, (taken, result), (places, heights), strict=True):
        found.put(rows, columns, 1.0)
        for piece, (entries, share) in enumerate(shares):
            found.put(rows[entries], share, -(part[piece + 1] - part[piece])[entries])


def _shares(found: Formulation, places: Floats) -> list[tuple[Numbers, Numbers]]:
    """Append the shares of every piece that is not empty: entries that have it, and columns of their shares."""
    shares = []
    before = np.full(places.shape[1], -1)  # column of the last share of each entry so far
    for start, end in pairwise(places):
        (entries,) = (end > start).nonzero()
        share = found.variables(np.zeros(len(entries)), np.ones(len(entries)))
        follows = before[entries] >= 0
        earlier, later = before[entries][follows], share[follows]
        switch = found.variables(np.zeros(len(later)), np.ones(len(later)), integral=True)
        for first, second in ((earlier, switch), (switch, later)):  # first >= second
            rows = found.constrain(np.zeros(len(later)), np.full(len(later), np.inf))
            found.put(rows, first, 1.0)
            found.put(rows, second, -1.0)
        before[entries] = share
        shares.append((entries, share))
    return shares


def _breakpoints(operation: Elementwise, lower: Tensor, upper: Tensor) -> tuple[Floats, Floats]:
    """Return the ends of the pieces of f between corners, (1, *value), and f there: both (n + 1, entries)."""
    knots = (torch.full_like(lower, knot) for knot in operation.kinks)
    points = [lower, *(torch.minimum(torch.maximum(knot, lower), upper) for knot in knots), upper]
    places, heights = ([*_flat(part)] for part in (points, [operation.apply(point) for point in points]))
    return np.stack(places), np.stack(heights)


def _write_maxima(found: Formulation, windows: tuple[Numbers, Floats, Floats], taken: Numbers, result: Numbers) -> None:
    """Append the maxima of windows. An entry that can never be the largest is left out, a window with one left is it.

    Args: windows: the entries of each, and their lower and upper ends, (windows, entries); padding ends at -inf.
    """
    members, low, high = windows
    floor = low.max(1, keepdims=True)
    able = ((high > floor) | (np.arange(low.shape[1]) == low.argmax(1)[:, None])) & (low > -np.inf)
    high = np.where(able, high, -np.inf)
    contested = able.sum(1) > 1
    window, entry = able.nonzero()
    others = np.where(np.arange(high.shape[1]) == entry[:, None], -np.inf, high[window])
    is_choice = contested[window]
    rest = others.max(1, initial=-np.inf)
    most = np.where(is_choice, rest - low[window, entry], 0.0)  # how far y can lie above the entry
    rows, columns = found.constrain(np.zeros(len(window)), np.full(len(window), np.inf)), taken[members[window, entry]]
    above = found.constrain(np.full(len(window), -np.inf), most)
    for some in (rows, above):
        found.put(some, result[window], 1.0)
        found.put(some, columns, -1.0)
    count = int(is_choice.sum())
    choice = found.variables(np.zeros(count), np.ones(count), integral=True)
    found.put(above[is_choice], choice, most[is_choice])
    one = found.constrain(np.ones(int(contested.sum())), np.ones(int(contested.sum())))
    found.put(one[(np.cumsum(contested) - 1)[window[is_choice]]], choice, 1.0)


def _windows(operation: MaxPool, lower: Tensor, upper: Tensor) -> tuple[Numbers, Floats, Floats]:
    """Return for each entry of the result which entries of the flattened value it is the maximum of, and their ends."""
    numbers = torch.arange(lower.numel(), device=lower.device, dtype=torch.float64).view_as(lower)
    parts = (operation.windows(part)[0].transpose(1, 2).flatten(0, 1).cpu().numpy() for part in (numbers, lower, upper))
    members, low, high = parts
    return np.where(low > -np.inf, members, 0).astype(np.int64), low, high


def _flat(parts: Sequence[Tensor]) -> Iterator[Floats]:
    return (part.reshape(-1).cpu().numpy() for part in parts)


def _corners(root: Root, image: int, number: int) -> tuple[Floats, Floats]:
    part = root.places.parts[number]
    lower, upper = _flat([root.lower[image, part], root.upper[image, part]])
    return lower, upper


def _unbounded(size: int) -> tuple[Floats, Floats]:
    return np.full(size, -np.inf), np.full(size, np.inf)
