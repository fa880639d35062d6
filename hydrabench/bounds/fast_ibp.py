"""Interval bounds to train with: margins of boxes, and the regularisers that keep boxes from exploding.

Source: Shi, Wang, Zhang, Yi and Hsieh (2021), arXiv:2103.17268, section 3; `initialization` has its initial weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from hydrabench.bounds.box import Interval
from hydrabench.bounds.interval import concretize, propagate
from hydrabench.bounds.program.linear import Scale
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.program.relu import Relu
from hydrabench.bounds.specification import Problem, pose

TOLERANCE = 0.5  # a layer is penalised where its ratio is below this one
SMALLEST = 1e-12  # keeps a ratio of two sums finite


@dataclass(frozen=True, eq=False)
class TrainingBounds:
    """Interval bounds of one batch, with gradients.

    margins: lower bounds of f_y - f_j, (B, K), exactly 0 in column y.
    image: the box of the images, behind the normalisation if the network starts with one.
    neurons: the box in front of each ReLU, in the order of the program.
    """

    margins: Tensor
    image: Interval
    neurons: Sequence[Interval]


def training_bounds(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    statistics: Tensor | None = None,
    shrinking: float = 1.0,
) -> TrainingBounds:
    """Return interval bounds over the boxes [x - epsilon, x + epsilon], cut to [0, 1].

    Args:
        network: made of the layers in `program.convert.LAYERS`, returning logits (B, K).
        x: centres of the boxes, (B, C, H, W), in [0, 1].
        y: classes whose margins are bounded, (B,), int64.
        epsilon: half the side of a box in pixel units, >= 0.
        statistics: images, (B, C, H, W), whose mean and variance batch norm in training mode takes; None for `x`.
        shrinking: factor in (0, 1] on the upper bound in front of an unstable ReLU. Below 1 the bounds are not sound:
            they serve as a loss and certify nothing.
    Raises: UnsupportedLayerError for a layer without a rule; ValueError for a negative radius, or an output that is
        not (B, K) with K >= 2.
    Source: Gowal et al. (2018), arXiv:1810.12715, section 3, last layer elided; shrinking: Mueller et al. (2023),
        arXiv:2210.04871, section 4.
    """
    problem = pose(network, x, y, epsilon, statistics=statistics)

    def shrink(operation: Relaxed, box: Interval) -> Interval:
        return _shrunk(box, shrinking) if isinstance(operation, Relu) else box

    passed = propagate(problem.body, problem.ball.box, keep=True, adjust=shrink if shrinking < 1 else None)
    rows = concretize(problem.rows, problem.offset, passed.output)
    margins = rows.new_zeros(len(y), rows.shape[1] + 1).scatter(1, problem.others, rows)
    neurons = [passed.before[node.inputs[0]] for node in problem.body if isinstance(node.operation, Relu)]
    return TrainingBounds(margins, _normalised(problem), neurons)


def regularizer(bounds: TrainingBounds) -> Tensor:
    """Return the mean over all ReLUs of the penalties on wide boxes and on unbalanced neurons, a scalar.

    With c and r the centres and radii of the boxes in front of ReLU i, r_0 the radius of the images and
    f(v) = min(v, 1 / v), the penalty is

        relu(t - mean(r_0) / mean(r)) / t + (relu(t - f(P)) + relu(t - f(Q))) / t,        t = 1/2,

    where P is the sum of c over active neurons over that of -c over inactive ones, and Q the same for the squared
    distances of c from its mean. A layer in which every neuron is unstable has no penalty on balance.

    Raises: ValueError if there is no ReLU.
    Source: arXiv:2103.17268, equations 8 to 12, and the authors' code.
    """
    if not bounds.neurons:
        raise ValueError("the regulariser of interval bounds needs a network with ReLUs")
    first = bounds.image.width.mean()
    return torch.stack([_tightness(first, box) + _balance(box) for box in bounds.neurons]).mean()


def _tightness(first: Tensor, box: Interval) -> Tensor:
    return relu(TOLERANCE - first / box.width.mean().clamp_min(SMALLEST)) / TOLERANCE


def _balance(box: Interval) -> Tensor:
    active, inactive = (box.lower() > 0).to(box.center), (box.upper() < 0).to(box.center)
    spread = (box.center - box.center.mean()).square()
    ratios = [
        _folded((box.center * active).sum(), -(box.center * inactive).sum()),
        _folded((spread * active).sum(), (spread * inactive).sum()),
    ]
    found = torch.stack([relu(TOLERANCE - ratio) for ratio in ratios]).sum() / TOLERANCE
    return found if active.any() or inactive.any() else torch.zeros_like(found)


def _folded(active: Tensor, inactive: Tensor) -> Tensor:
    """Return the smaller sum over the larger one, in [0, 1]."""
    return torch.minimum(active, inactive) / torch.maximum(active, inactive).clamp_min(SMALLEST)


def _shrunk(box: Interval, factor: float) -> Interval:
    lower, upper = box.lower(), box.upper()
    unstable = (lower < 0) & (upper > 0)
    return Interval.between(lower, torch.where(unstable, factor * upper, upper))


def _normalised(problem: Problem) -> Interval:
    first = problem.body[0].operation if problem.body else None
    return first.interval(problem.ball.box) if isinstance(first, Scale) else problem.ball.box
