"""Margins by interval bound propagation, and their mixture with CROWN-IBP to train with."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from hydrabench.bounds.backward import MEMORY
from hydrabench.bounds.crown import crown_ibp_rows, lower_bounds
from hydrabench.bounds.intermediate import IntermediateBounds
from hydrabench.bounds.interval import concretize, propagate
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.specification import Problem, pose, solved
from hydrabench.threat import Norm

NEGLIGIBLE = 1e-5  # weight of CROWN-IBP below which its pass is left out, as in HYDRA's code


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


def interval_rows(problem: Problem) -> Tensor:
    """Lower bounds of the margins of a problem, (B, S), by intervals; an L2 ball is one up to the first linear layer.

    Source: Gowal et al. (2018), arXiv:1810.12715, section 3.
    """
    if problem.ball.norm == "linf":
        output = propagate(problem.body, problem.ball.box).output
    elif not any(isinstance(node.operation, Relaxed) for node in problem.body):
        return crown_ibp_rows(problem)  # the first linear layer is the last one
    else:
        output = IntermediateBounds(problem.body, problem.ball).propagate(tighten=False).output
    return concretize(problem.rows, problem.offset, output)


def class_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, beta: float) -> Tensor:
    """Lower bounds of f_y - f_j for every class j, a mixture of both methods to train with.

    Args:
        network, x, y, epsilon: as for `interval_margins`. Batch norm in training mode is held at its
            statistics of `x`; running statistics stay as they are.
        beta: weight of the CROWN-IBP bounds, in [0, 1]; interval bounds get 1 - beta.
    Returns: (B, K), exactly 0 in column y, differentiable with respect to the network's parameters.
    Raises: ValueError if `beta` is outside its range, and what `interval_margins` raises.
    Source: Zhang et al. (2019), arXiv:1906.06316, section 3.2.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"out of range: {beta=}, must be in [0, 1]")
    problem = pose(network, x, y, epsilon)
    rows = solved(problem, partial(_mixture, beta=beta))
    return rows.new_zeros(len(y), rows.shape[1] + 1).scatter(1, problem.others, rows)


def _mixture(problem: Problem, *, beta: float) -> Tensor:
    with_crown, box = beta >= NEGLIGIBLE, problem.ball.box
    passed = propagate(problem.body, box, keep=with_crown)
    if not with_crown:
        return concretize(problem.rows, problem.offset, passed.output)
    crown = lower_bounds(problem.body, box, passed, problem.rows, problem.offset)
    return crown if beta == 1 else torch.lerp(concretize(problem.rows, problem.offset, passed.output), crown, beta)
