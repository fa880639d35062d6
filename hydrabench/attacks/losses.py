"""What an attack maximises, and the margin that says whether it has succeeded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

AttackLoss = Callable[[Tensor, Tensor], Tensor]


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
    others = logits.scatter(1, true, -torch.inf).amax(1)
    return logits.gather(1, true)[:, 0] - others


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


LOSSES: dict[str, AttackLoss] = {"ce": cross_entropy, "margin": negative_margin}
