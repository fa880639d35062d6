"""Importance scores: their initial values, how layers share a budget by them, and the mask that they select."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydrabench.masking.density import prunable_layers

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) in [0, 1] and labels (B,)
# (network without masks, generator, one training batch) -> scores by layer, each of the shape of its weight
ScoreInit = Callable[[nn.Module, torch.Generator, Batch], dict[str, Tensor]]


class _TopK(torch.autograd.Function):
    """0/1 mask of the largest |scores|; the gradient passes straight through to |scores|, its sum to the keep rate."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, kept: int, _rate: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(scores)
        return _largest(scores.detach().abs().flatten(), kept).view_as(scores)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None]:  # type: ignore[override]
        (scores,) = ctx.saved_tensors
        return gradient * scores.sign(), None, gradient.sum() if ctx.needs_input_grad[2] else None


def _largest(magnitudes: Tensor, kept: int) -> Tensor:
    """0/1 tensor with ones at the `kept` largest of flat `magnitudes`.

    On the CPU, the smallest of them is found faster than `topk` finds them all. Unless it has equals that
    are not kept, or there are NaNs, the mask is everything from it on; else `topk` decides.
    """
    if magnitudes.device.type == "cpu" and kept > 0:
        found = magnitudes >= _smallest_kept(magnitudes, kept)
        if int(found.count_nonzero()) == kept:
            return found.to(magnitudes.dtype)
    mask = torch.zeros_like(magnitudes)
    mask[magnitudes.topk(kept, sorted=False).indices] = 1
    return mask


def _smallest_kept(magnitudes: Tensor, kept: int) -> float:
    """The smallest of the `kept` > 0 largest of flat `magnitudes`, by numpy where it can."""
    if magnitudes.device.type == "cpu" and magnitudes.dtype in (torch.float32, torch.float64):
        place = magnitudes.numel() - kept
        return float(np.partition(magnitudes.numpy(), place)[place])
    return float(magnitudes.topk(kept, sorted=False).values.min())


def top_k_mask(scores: Tensor, kept: int, rate: Tensor | None = None) -> Tensor:
    """0/1 tensor with exactly `kept` ones, at the largest |scores|; of equals at the boundary, at those of `topk`.

    Those are the same in every run and for every number of threads, but not the first ones, and not the same on a
    GPU. Taking the first would be simpler and would change the bits of networks that were pruned with ties.

    Args:
        scores: any shape.
        kept: number of ones, 0 <= kept <= scores.numel().
        rate: the learned fraction that `kept` follows, a scalar, if there is one.
    Returns: a tensor of the shape and dtype of `scores`. Its gradient with respect to `scores` is the
        incoming gradient times sign(scores) (straight-through estimator), that with respect to `rate` its sum.
    Source: HYDRA (arXiv:2002.10509) section 3 and Ramanujan et al. (arXiv:1911.13299), selection
        instead of their full sort; the rate as in HARP (arXiv:2412.14714).
    """
    mask: Tensor = _TopK.apply(scores, kept, rate)
    return mask


def share_budget(scores: Sequence[Tensor], kept: int) -> list[int]:
    """Return how many weights each layer keeps if the `kept` largest |scores| of all layers together are kept.

    Every layer keeps at least its largest one, whatever the others have: an empty layer would cut the
    network in two. Of equal scores at the boundary, those of earlier layers come first.

    Args:
        scores: of every layer, any shape, not empty.
        kept: len(scores) <= kept <= all elements together.
    Returns: one number for each layer, together exactly `kept`.
    Raises: ValueError if `kept` is out of range.
    """
    if not len(scores) <= kept <= sum(layer.numel() for layer in scores):
        raise ValueError(f"out of range: {kept=} of {len(scores)} layers")
    magnitudes = []
    for layer in scores:
        flat = layer.detach().abs().flatten()
        flat[flat.argmax()] = torch.inf
        magnitudes.append(flat)
    smallest = _smallest_kept(torch.cat(magnitudes), kept)
    larger = torch.stack([(flat > smallest).sum() for flat in magnitudes]).tolist()
    equal = torch.stack([(flat == smallest).sum() for flat in magnitudes]).tolist()
    spare, counts = kept - sum(larger), []
    for sure, tied in zip(larger, equal, strict=True):
        taken = min(spare, tied)
        spare -= taken
        counts.append(sure + taken)
    return counts


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


def snip_scores(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """SNIP: |dL/dw · w| of the cross entropy on one batch, which is |dL/ds| of any scores while all weights are kept.

    Args:
        network: without masks. It computes in train mode, on the batch's own statistics, and is left as it was.
        x: images, (B, C, H, W), in [0, 1].
        y: labels, (B,).
    Returns: scores by layer, >= 0; zero where a weight has no effect on the loss.
    Source: Lee, Ajanthan and Torr (2019), arXiv:1810.02340, equation 5 without its normalisation, which no
        ranking depends on.
    """
    twin = copy.deepcopy(network).train()
    weights = {name: layer.weight.requires_grad_() for name, layer in prunable_layers(twin).items()}
    with torch.enable_grad():
        loss = F.cross_entropy(twin(x), y)
        gradients = torch.autograd.grad(loss, list(weights.values()))
    return {
        name: (gradient * weight.detach()).abs()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


def _scaled(network: nn.Module, _generator: torch.Generator, _batch: Batch) -> dict[str, Tensor]:
    return {name: scaled_scores(layer) for name, layer in prunable_layers(network).items()}


def _snip(network: nn.Module, _generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
    return snip_scores(network, *batch)


def _drawn(
    fill: Callable[..., Tensor], network: nn.Module, generator: torch.Generator, _batch: Batch
) -> dict[str, Tensor]:
    """Scores drawn layer by layer from the generator alone."""
    layers = prunable_layers(network)
    return {name: fill(torch.empty(layer.weight.shape), generator=generator) for name, layer in layers.items()}


# The names are the recipe's values of `scores:`. Fans as in torch; Kaiming with fan-in and the gain of ReLU.
SCORE_INITS: dict[str, ScoreInit] = {
    "scaled": _scaled,
    "kaiming_normal": partial(_drawn, nn.init.kaiming_normal_),
    "kaiming_uniform": partial(_drawn, nn.init.kaiming_uniform_),
    "xavier_normal": partial(_drawn, partial(nn.init.xavier_normal_, gain=2**0.5)),
    "xavier_uniform": partial(_drawn, partial(nn.init.xavier_uniform_, gain=2**0.5)),
    "snip": _snip,
}
