"""The methods of bounding margins: which boxes, and which lines.

ibp: boxes sent forward. crown-ibp: one pass backward over those boxes. crown: a pass backward for each unstable neuron,
too. symbolic: the same with equal slopes. `cascade` tries one after the other.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from hydrabench.bounds.crown import MEMORY, lower_bounds
from hydrabench.bounds.intermediate import IntermediateBounds
from hydrabench.bounds.interval import concretize, propagate
from hydrabench.bounds.patches import Rows
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.specification import Problem, flat, pose, solved
from hydrabench.bounds.symbolic import symbolic_rows
from hydrabench.threat import Norm

NEGLIGIBLE = 1e-5  # weight of CROWN-IBP below which its pass is left out (reference/hydra.md, section 1.6, item 5)


class MarginBound(Protocol):
    """A method of bounding margins; `interval_margins` says what the arguments are."""

    def __call__(
        self, network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: float, *, norm: Norm = "linf"
    ) -> Tensor:
        """Return lower bounds of the margins, (B,)."""


def interval_margins(
    network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: float, *, norm: Norm = "linf", memory: int = MEMORY
) -> Tensor:
    """Lower bounds of min over j != y of f_y - f_j over a ball around each image, by intervals.

    Args:
        network: made of the layers in `program.convert.LAYERS`, returning logits (B, K); or what `prepared` read of it.
        x: images, (B, C, H, W), in [0, 1].
        y: true classes, (B,), int64, in [0, K).
        epsilon: radius in pixel units, >= 0; the ball is clipped to [0, 1].
        norm: "linf" or "l2".
        memory: bytes to keep to, as far as one image does; the batch is taken in parts.
    Returns: (B,), in logit units; an image is verified where it is > 0. NaN where the network gives NaN.
    Raises: UnsupportedLayerError for a layer without a rule; ValueError for a negative radius, or an output that is
        not (B, K) with K >= 2.
    Source: Gowal et al. (2018), arXiv:1810.12715, section 3, last layer elided.
    """
    return solved(pose(network, x, y, epsilon, norm=norm), interval_rows, memory=memory).min(1).values


def symbolic_margins(
    network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: float, *, norm: Norm = "linf", memory: int = MEMORY
) -> Tensor:
    """Like `interval_margins`, by symbolic intervals.

    Source: reference/hydra.md, section 1.8.
    """
    return solved(pose(network, x, y, epsilon, norm=norm), symbolic_rows, memory=memory).min(1).values


def crown_ibp_margins(
    network: nn.Module | Prepared,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    norm: Norm = "linf",
    memory: int = MEMORY,
    only_open: bool = False,
) -> Tensor:
    """Like `interval_margins`, by one CROWN pass backward with interval bounds before unstable neurons.

    Not always above the interval margins: both are sound, and a caller may take the larger one.

    Args:
        only_open: take the interval bound of f_y - f_j where it is positive, the larger of both elsewhere,
            and leave out the pass backward for every margin that is proved already.
    Source: Zhang et al. (2019), arXiv:1906.06316, section 3; reference/hydra.md, section 1.7.
    """
    method = partial(_open_rows if only_open else crown_ibp_rows, memory=memory)
    return solved(pose(network, x, y, epsilon, norm=norm), method, memory=memory).min(1).values


def crown_margins(
    network: nn.Module | Prepared, x: Tensor, y: Tensor, epsilon: float, *, norm: Norm = "linf", memory: int = MEMORY
) -> Tensor:
    """Like `interval_margins`, by CROWN for every unstable neuron as for the margins.

    Source: Zhang et al. (2018), arXiv:1811.00866; reference/hydra.md, section 1.7, "full CROWN".
    """
    return solved(pose(network, x, y, epsilon, norm=norm), crown_rows, memory=memory).min(1).values


def class_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, beta: float) -> Tensor:
    """Lower bounds of f_y - f_j for every class j, a mixture of both methods to train with.

    Args:
        network, x, y, epsilon: as for `interval_margins`. Batch norm in training mode is held at its
            statistics of `x`; running statistics stay as they are.
        beta: weight of the CROWN-IBP bounds, in [0, 1]; interval bounds get 1 - beta.
    Returns: (B, K), exactly 0 in column y, differentiable with respect to the network's parameters.
    Raises: ValueError if `beta` is outside its range, and what `interval_margins` raises.
    Source: Zhang et al. (2019), arXiv:1906.06316, section 3.2; reference/hydra.md, section 1.6.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"out of range: {beta=}, must be in [0, 1]")
    problem = pose(network, x, y, epsilon)
    rows = solved(problem, partial(_mixture, beta=beta))
    return rows.new_zeros(len(y), rows.shape[1] + 1).scatter(1, problem.others, rows)


# The rows of each method --------------------------------------------------------------------------


def interval_rows(problem: Problem) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by intervals; an L2 ball is one up to the first linear layer.

    Source: Gowal et al. (2018), arXiv:1810.12715, section 3; reference/hydra.md, section 1.7, "IBP forward".
    """
    if problem.ball.norm == "linf":
        output = propagate(problem.body, problem.ball.box).output
    elif not any(isinstance(node.operation, Relaxed) for node in problem.body):
        return crown_ibp_rows(problem)  # the first linear layer is the last one
    else:
        output = IntermediateBounds(problem.body, problem.ball).propagate(tighten=False).output
    return concretize(problem.rows, problem.offset, output)


def crown_ibp_rows(problem: Problem, *, memory: int = MEMORY) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by one pass backward over the bounds of `interval_rows`.

    Source: Zhang et al. (2019), arXiv:1906.06316, section 3.
    """
    if problem.ball.norm != "linf":
        return _crown(problem, tighten=False)
    passed = propagate(problem.body, problem.ball.box, keep=True)
    return lower_bounds(problem.body, problem.ball.box, passed, problem.rows, problem.offset, memory=memory)


def crown_rows(problem: Problem) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by CROWN for every undecided neuron as for the margins.

    Source: Zhang et al. (2018), arXiv:1811.00866; reference/hydra.md, section 1.7, "full CROWN".
    """
    return _crown(problem, tighten=True)


def _crown(problem: Problem, *, tighten: bool) -> Tensor:
    bounds = IntermediateBounds(problem.body, problem.ball)
    passed = bounds.propagate(tighten=tighten)
    if problem.ball.norm == "linf":
        return lower_bounds(problem.body, problem.ball.box, passed, problem.rows, problem.offset)
    return bounds.lower(len(problem.body), flat(problem.rows), problem.offset.flatten()).view(problem.offset.shape)


def _mixture(problem: Problem, *, beta: float) -> Tensor:
    with_crown, box = beta >= NEGLIGIBLE, problem.ball.box
    passed = propagate(problem.body, box, keep=with_crown)
    if not with_crown:
        return concretize(problem.rows, problem.offset, passed.output)
    crown = lower_bounds(problem.body, box, passed, problem.rows, problem.offset)
    return crown if beta == 1 else torch.lerp(concretize(problem.rows, problem.offset, passed.output), crown, beta)


def _open_rows(problem: Problem, *, memory: int) -> Tensor:
    if problem.ball.norm != "linf":
        return _open_rows_of_ball(problem)
    box = problem.ball.box
    passed = propagate(problem.body, box, keep=True)  # one pass of intervals serves both
    interval = concretize(problem.rows, problem.offset, passed.output)
    offset = problem.offset.masked_fill(interval > 0, -torch.inf)
    return torch.maximum(interval, lower_bounds(problem.body, box, passed, problem.rows, offset, memory=memory))


def _open_rows_of_ball(problem: Problem) -> Tensor:
    if not any(isinstance(node.operation, Relaxed) for node in problem.body):
        return interval_rows(problem)  # exact already
    bounds = IntermediateBounds(problem.body, problem.ball)
    interval = concretize(problem.rows, problem.offset, bounds.propagate(tighten=False).output)
    is_open = ~(interval > 0)  # NaN is open
    if not is_open.any():
        return interval
    rows = Rows(problem.rows[is_open], is_open.nonzero()[:, 0])
    found = bounds.lower(len(problem.body), rows, problem.offset[is_open])
    return interval.masked_scatter(is_open, torch.maximum(interval[is_open], found))
