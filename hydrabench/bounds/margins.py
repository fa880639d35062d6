"""Lower bounds of classification margins: the last linear layer merged with the differences of classes.

A margin bounded as f_y - f_j in one piece is tighter than the difference of two bounded logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hydrabench.bounds.crown import MEMORY, lower_bounds
from hydrabench.bounds.graph import Node, program_of, read, shapes_of
from hydrabench.bounds.interval import Interval, concretize, propagate
from hydrabench.bounds.operations import Dense
from hydrabench.threat import linf_box

# (network, images (B, C, H, W) in [0, 1], labels (B,), epsilon) -> lower bounds of the margins, (B,)
MarginBound = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
NEGLIGIBLE = 1e-5  # weight of CROWN-IBP below which its pass is left out (reference/hydra.md, section 1.6, item 5)


def interval_margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, memory: int = MEMORY) -> Tensor:
    """Lower bounds of min over j != y of f_y - f_j over the L-infinity ball, by intervals.

    Args:
        network: made of the layers in `layers.LAYERS`, returning logits (B, K).
        x: images, (B, C, H, W), in [0, 1].
        y: true classes, (B,), int64, in [0, K).
        epsilon: radius in pixel units, >= 0; the ball is clipped to [0, 1].
        memory: bytes to keep to, as far as one image does; the batch is taken in parts.
    Returns: (B,), in logit units; an image is verified where it is > 0. NaN where the network gives NaN.
    Raises: UnsupportedLayerError for a layer without a rule; ValueError for a negative radius or an
        output that is not (B, K) with K >= 2.
    Source: Gowal et al. (2018), arXiv:1810.12715, section 3, last layer elided.
    """
    return _margins(network, x, y, epsilon, partial(_mixture, beta=0.0), memory).rows.min(1).values


def crown_ibp_margins(
    network: nn.Module, x: Tensor, y: Tensor, epsilon: float, *, memory: int = MEMORY, only_open: bool = False
) -> Tensor:
    """Like `interval_margins`, by one CROWN pass backward with interval bounds before the ReLUs.

    Not always above the interval margins: both are sound, and a caller may take the larger one.

    Args:
        only_open: take the interval bound of f_y - f_j where it is positive, the larger of both elsewhere,
            and leave out the pass backward for every margin that is proved already.
    Source: Zhang et al. (2019), arXiv:1906.06316, section 3; reference/hydra.md, section 1.7.
    """
    method = partial(_open_margins, memory=memory) if only_open else partial(_mixture, beta=1.0, memory=memory)
    return _margins(network, x, y, epsilon, method, memory).rows.min(1).values


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
    margins = _margins(network, x, y, epsilon, partial(_mixture, beta=beta), MEMORY)
    zeros = margins.rows.new_zeros(len(y), margins.rows.shape[1] + 1)
    return zeros.scatter(1, margins.others, margins.rows)


@dataclass(frozen=True, eq=False)
class _Margins:
    """Lower bounds `rows` of f_y - f_j, (B, K - 1), for the classes j in `others`, of the same shape."""

    rows: Tensor
    others: Tensor


# (program, box of inputs, coefficients (B, S, F), constants (B, S)) -> lower bounds of these functions, (B, S)
Method = Callable[[Sequence[Node], Interval, Tensor, Tensor], Tensor]


def _margins(network: nn.Module, x: Tensor, y: Tensor, epsilon: float, method: Method, memory: int) -> _Margins:
    if not epsilon >= 0:
        raise ValueError(f"out of range: {epsilon=}, must be >= 0")
    box = Interval.taking(*linf_box(x, epsilon))
    nodes = read(program_of(network), x)
    last = nodes[-1].operation if nodes else None
    head = last if isinstance(last, Dense) else None
    body = nodes[:-1] if head else nodes
    shapes = shapes_of(body, x)
    others, rows, offset = specification(head, y, x.new_empty(1).expand(0, *shapes[-1]))
    together = max(1, memory // (x.element_size() * _image_size(body, shapes)))
    if together >= len(x):
        return _Margins(method(body, box, rows, offset), others)
    parts = [slice(start, start + together) for start in range(0, len(x), together)]
    return _Margins(torch.cat([method(body, box.images(part), rows[part], offset[part]) for part in parts]), others)


def _image_size(nodes: Sequence[Node], shapes: Sequence[torch.Size]) -> int:
    """Numbers that bounding one image takes: boxes kept for a pass backward, and what an operation holds at once."""
    kept = {node.inputs[0] for node in nodes if node.operation.relaxed}
    return 2 * sum(shapes[number].numel() for number in kept) + 6 * max(shape.numel() for shape in shapes)


def _mixture(
    nodes: Sequence[Node], box: Interval, rows: Tensor, offset: Tensor, *, beta: float, memory: int = MEMORY
) -> Tensor:
    with_crown = beta >= NEGLIGIBLE
    passed = propagate(nodes, box, keep=with_crown)
    if not with_crown:
        return concretize(rows, offset, passed.output)
    crown = lower_bounds(nodes, box, passed, rows, offset, memory=memory)
    return crown if beta == 1 else torch.lerp(concretize(rows, offset, passed.output), crown, beta)


def _open_margins(nodes: Sequence[Node], box: Interval, rows: Tensor, offset: Tensor, *, memory: int) -> Tensor:
    passed = propagate(nodes, box, keep=True)
    interval = concretize(rows, offset, passed.output)
    open_only = offset.masked_fill(interval > 0, -torch.inf)
    return torch.maximum(interval, lower_bounds(nodes, box, passed, rows, open_only, memory=memory))


def specification(head: Dense | None, y: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows e_y - e_j, j != y, times the last linear layer if there is one.

    Args:
        head: the last linear layer, or None if `value` is the logits.
        y: true classes, (B,).
        value: what the rows are applied to, (B, F); only its shape and type matter.
    Returns: the classes j, (B, K - 1); coefficients (B, K - 1, F); constants (B, K - 1).
    """
    classes = value.shape[-1] if head is None else len(head.weight)
    if value.ndim != 2 or classes < 2:
        raise ValueError(f"margins need logits (B, K) of at least 2 classes, got {(*value.shape[:-1], classes)}")
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y.unsqueeze(1))
    weight = torch.eye(classes, dtype=value.dtype, device=value.device) if head is None else head.weight
    rows = weight[y].unsqueeze(1) - weight[others]
    if head is None or head.bias is None:
        return others, rows, rows.new_zeros(others.shape)
    return others, rows, head.bias[y].unsqueeze(1) - head.bias[others]
