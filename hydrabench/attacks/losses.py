"""Losses that an attack maximises, and the margin that says whether it has succeeded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

AttackLoss = Callable[[Tensor, Tensor], Tensor]
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
NEVER_ZERO = 1e-12  # added to the denominator of DLR, as its authors do


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """True-class logit minus the largest other logit: positive where the prediction is right.

    Args:
        logits: raw scores, (B, K), K >= 2.
        y: true classes, (B,), int64.
    Returns: (B,). Raises: ValueError if there are fewer than two classes.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"a margin compares at least two classes, got logits of shape {tuple(logits.shape)}")
    true = y[:, None]
    rival = logits.detach().scatter(1, true, -torch.inf).argmax(1, keepdim=True)
    compared = logits.gather(1, torch.cat([true, rival], dim=1))
    return compared[:, 0] - compared[:, 1]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of each image, (B,): the loss of Madry et al. (2018), arXiv:1706.06083, equation 2.1."""
    return F.cross_entropy(logits, y, reduction="none")


def negative_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the true-class logit, (B,).

    Unlike the cross entropy, its gradient does not vanish where the network is confident.
    Source: Carlini and Wagner (2017), arXiv:1608.04644, section V-A, objective f6,
    untargeted and without its cut-off.
    """
    return -margin(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (B,): the negative margin over the largest logit less the third.

    It changes neither with the scale of the logits nor with a shift. It needs 3 classes.
    Source: Croce and Hein (2020), arXiv:2003.01690, equation 6.
    """
    highest = logits.topk(3, dim=1).values
    return -margin(logits, y) / (highest[:, 0] - highest[:, 2] + NEVER_ZERO)


def targeted_cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:  # noqa: ARG001
    """Minus the cross entropy of the target class, (B,)."""
    return -F.cross_entropy(logits, target, reduction="none")


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Target logit minus true-class logit, (B,). Source: Gowal et al. (2019), arXiv:1910.09338, MultiTargeted."""
    compared = logits.gather(1, torch.stack([target, y], dim=1))
    return compared[:, 0] - compared[:, 1]


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio, (B,). It needs 4 classes.

    Source: Croce and Hein (2020), arXiv:2003.01690, equation 7.
    """
    highest = logits.topk(4, dim=1).values
    return targeted_margin(logits, y, target) / (highest[:, 0] - (highest[:, 2] + highest[:, 3]) / 2 + NEVER_ZERO)


LOSSES: dict[str, AttackLoss] = {"ce": cross_entropy, "margin": negative_margin, "dlr": dlr}
TARGETED_LOSSES: dict[str, TargetedLoss] = {
    "ce": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}
FEWEST_CLASSES = {"ce": 2, "margin": 2, "dlr": 3}  # that a loss compares; a targeted DLR compares 4
