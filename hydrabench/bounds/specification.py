"""The functions that are bounded: margins of a network over balls around images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hydrabench.bounds.backward import MEMORY
from hydrabench.bounds.ball import Ball
from hydrabench.bounds.box import channels_last
from hydrabench.bounds.patches import Rows
from hydrabench.bounds.prepared import Prepared
from hydrabench.bounds.program.operations import Relaxed
from hydrabench.bounds.program.program import Node, program_of, read, shapes_of
from hydrabench.threat import Norm

Matrix = tuple[Tensor, Tensor | None]  # weight (out, in), bias (out,)

FEW_CLASSES = 32
# Products of convolutions for each number that must be laid out anew, from which on a CPU gains. A product takes some
# 20 ps, a tenth to a third less with channels last, and moving a number 0.5 to 2 ns.
MANY_PRODUCTS = 500


@dataclass(frozen=True, eq=False)
class Problem:
    """The margins f_y - f_j as functions of the value in front of the last linear layer, which is merged into them.

    network: what was read. body: the operations up to that value; shapes: of its values, without the batch axis.
    ball: around the images. y: true classes, (B,). others: the classes j, (B, S), none of them y. rows: coefficients,
    (B, S, F). offset: constants, (B, S).
    """

    network: nn.Module
    body: list[Node]
    shapes: list[torch.Size]
    ball: Ball
    y: Tensor
    others: Tensor
    rows: Tensor
    offset: Tensor

    def images(self, part: slice | Tensor) -> Problem:
        """The problem of some images, given by a slice or their numbers."""
        ball = replace(self.ball, x=self.ball.x[part])
        return replace(
            self, ball=ball, y=self.y[part], others=self.others[part], rows=self.rows[part], offset=self.offset[part]
        )

    def functions(self, places: Tensor) -> Problem:
        """The problem of some margins of each image, by their places in `others`: (B, fewer)."""
        rows = self.rows.gather(1, places.unsqueeze(2).expand(-1, -1, self.rows.shape[2]))
        return replace(self, others=self.others.gather(1, places), rows=rows, offset=self.offset.gather(1, places))


def pose(
    network: nn.Module | Prepared,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    norm: Norm = "linf",
    statistics: Tensor | None = None,
) -> Problem:
    """Read a network for the margins of all classes but `y`, or take what was read of it before.

    Args:
        statistics: images, (B, C, H, W), whose statistics batch norm in training mode takes; None for `x`.
    Raises: UnsupportedLayerError for a layer without a rule; ValueError for a negative radius, or an
        output that is not (B, K) with K >= 2.
    """
    if not epsilon >= 0:
        raise ValueError(f"out of range: {epsilon=}, must be >= 0")
    if isinstance(network, Prepared):
        key, nodes = ("pose", x.shape[1:], x.dtype, x.device), network.nodes
        parts, tables = network.once(key, lambda: _parts_and_tables(nodes, x))
        functions = tuple(table[y] for table in tables) if tables else specification(parts.head, y, parts.value)
        network = network.network
    else:
        parts = _parts(read(program_of(network), x if statistics is None else statistics), x)
        functions = specification(parts.head, y, parts.value)
    if not torch.is_grad_enabled() and channels_last_pays(parts.body, parts.shapes):
        x = channels_last(x)  # once for all that is computed from it
    return Problem(network, parts.body, parts.shapes, Ball(x, epsilon, norm), y, *functions)


def pose_outputs(network: Prepared, x: Tensor, epsilon: float) -> Problem:
    """Pose the outputs (B, S) of a network themselves as the functions, over L-infinity balls around `x`, (B, ...)."""
    parts = _parts(network.nodes, x)
    weight, bias = parts.head or (torch.eye(parts.value.shape[-1], dtype=x.dtype, device=x.device), None)
    rows = weight.expand(len(x), *weight.shape)
    offset = rows.new_zeros(rows.shape[:2]) if bias is None else bias.expand(len(x), -1)
    others = torch.arange(len(weight), device=x.device).expand(len(x), -1)
    return Problem(network.network, parts.body, parts.shapes, Ball(x, epsilon), others[:, 0], others, rows, offset)


@dataclass(frozen=True, eq=False)
class _Parts:
    """A program apart: its last linear layer, if it ends with one, the operations before it, and their shapes.

    value: what `head` takes, or the logits, of no image.
    """

    head: Matrix | None
    body: list[Node]
    shapes: list[torch.Size]
    value: Tensor


def _parts(nodes: list[Node], x: Tensor) -> _Parts:
    last = nodes[-1].operation if nodes else None
    head = None if last is None else last.matrix
    body = nodes if head is None else nodes[:-1]
    shapes = shapes_of(body, x)
    return _Parts(head, body, shapes, x.new_empty(1).expand(0, *shapes[-1]))


def _parts_and_tables(nodes: list[Node], x: Tensor) -> tuple[_Parts, tuple[Tensor, ...]]:
    """With what `specification` says for every class, if there are few: the rows take a multiple of the layer."""
    parts = _parts(nodes, x)
    classes = parts.value.shape[-1] if parts.head is None else len(parts.head[0])
    if classes > FEW_CLASSES:
        return parts, ()
    return parts, specification(parts.head, torch.arange(classes, device=x.device), parts.value)


def channels_last_pays(nodes: Sequence[Node], shapes: Sequence[torch.Size]) -> bool:
    """Return whether convolutions gain more by channels last than bringing images into it, and vectors out, takes."""
    products, moved = 0, shapes[0].numel()
    for node, after in zip(nodes, shapes[1:], strict=True):
        if len(after) == 3:
            products += node.operation.products * after.numel()
        elif node.operation.makes_vectors:
            moved += after.numel()
    return products >= MANY_PRODUCTS * moved


def solved(problem: Problem, method: Callable[[Problem], Tensor], *, memory: int = MEMORY) -> Tensor:
    """Apply a method to so many images at a time that `memory` bytes suffice, as far as one image does: (B, S)."""
    if not len(problem.y):
        return problem.offset
    together = max(1, memory // image_bytes(problem))
    count = len(problem.y)
    if together >= count:
        return method(problem)
    return torch.cat([method(problem.images(slice(start, start + together))) for start in range(0, count, together)])


def image_bytes(problem: Problem) -> int:
    """Return what bounding one image takes: boxes kept for a pass backward, and what an operation holds at once."""
    kept = {number for node in problem.body if isinstance(node.operation, Relaxed) for number in node.inputs}
    sizes = [shape.numel() for shape in problem.shapes]
    return problem.rows.element_size() * (2 * sum(sizes[number] for number in kept) + 6 * max(sizes))


def clean_margins(problem: Problem) -> Tensor:
    """The margins of the images themselves, (B, S)."""
    values = [problem.ball.x]
    for node in problem.body:
        values.append(node.operation.apply(*(values[number] for number in node.inputs)))
    return torch.baddbmm(problem.offset.unsqueeze(2), problem.rows, values[-1].unsqueeze(2)).squeeze(2)


def specification(head: Matrix | None, y: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows e_y - e_j, j != y, times the last linear layer if there is one.

    Args:
        head: weight and bias of the last linear layer, or None if `value` is the logits.
        y: true classes, (B,).
        value: what the rows are applied to, (B, F); only its shape and type matter.
    Returns: the classes j, (B, K - 1); coefficients (B, K - 1, F); constants (B, K - 1).
    """
    weight, bias = head or (torch.eye(value.shape[-1], dtype=value.dtype, device=value.device), None)
    classes = len(weight)
    if value.ndim != 2 or classes < 2:
        raise ValueError(f"margins need logits (B, K) of at least 2 classes, got {(*value.shape[:-1], classes)}")
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y.unsqueeze(1))
    rows = weight[y].unsqueeze(1) - weight[others]
    if bias is None:
        return others, rows, rows.new_zeros(others.shape)
    return others, rows, bias[y].unsqueeze(1) - bias[others]


def flat(rows: Tensor) -> Rows:
    """Coefficients (B, S, F) as rows, image by image."""
    image = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
    return Rows(rows.flatten(0, 1), image)
