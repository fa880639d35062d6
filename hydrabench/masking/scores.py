"""Importance scores: their initial values and the mask that they select."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _TopK(torch.autograd.Function):
    """0/1 mask of the largest |scores|; the gradient passes straight through to |scores|."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, kept: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(scores)
        magnitudes = scores.detach().abs().flatten()
        mask = torch.zeros_like(magnitudes)
        mask[magnitudes.topk(kept, sorted=False).indices] = 1
        return mask.view_as(scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (scores,) = ctx.saved_tensors
        return gradient * scores.sign(), None


def top_k_mask(scores: Tensor, kept: int) -> Tensor:
    """0/1 tensor with ones at the `kept` largest |scores|; exactly `kept` ones, ties broken arbitrarily.

    Args:
        scores: any shape.
        kept: number of ones, 0 <= kept <= scores.numel().
    Returns: a tensor of the shape and dtype of `scores`. Its gradient with respect to `scores` is the
        incoming gradient times sign(scores) (straight-through estimator).
    Source: HYDRA (arXiv:2002.10509) section 3 and Ramanujan et al. (arXiv:1911.13299); selection
        instead of their full sort.
    """
    mask: Tensor = _TopK.apply(scores, kept)
    return mask


def scaled_scores(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """HYDRA's scaled initialisation: s = sqrt(6 / fan_in) · w / max|w|, so |s| ranks exactly like |w|.

    Args:
        layer: fan_in is (in_channels / groups) · kernel height · kernel width, or in_features.
    Returns: scores of the shape of the weight; all zero for an all-zero weight.
    Source: arXiv:2002.10509, section 3.1, equation 3.
    """
    weight = layer.weight.detach()
    fan_in = weight[0].numel()
    largest = weight.abs().max()
    scale: Tensor = (6 / fan_in) ** 0.5 / torch.where(largest > 0, largest, torch.ones_like(largest))
    return weight * scale
