"""How the original HYDRA code counts, and how to say the same in our exact terms. Only its files are read by it.

Density. The original keeps n - int((1 - k) n) weights of a layer, evaluated in floating point, which at some
k is one more than our exact rule keeps. A density of ours means the exact rule, everywhere. So the
original's k is translated: to itself, where the two rules agree (in every architecture at 0.1, 0.05 and
0.01), or else to the next float, such as 0.9000000000000001 for 0.9. At a few k the original is off in some
layers and not in others (0.3 in wrn_28_10); these have no translation.

Ties. The original sorts |scores| and prunes the first; which of several equal scores at the boundary come
first is up to the sort. We take them in the order of the tensor, as a stable sort does, and move the kept
ones of them by one float away from zero, so that the scores alone say what is kept, whoever sorts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from fractions import Fraction

import torch
from torch import Tensor

from hydrabench.errors import ConfigError
from hydrabench.masking import LayerDensity, ScoreMask, kept_count

Counts = Collection[tuple[int, int]]  # of every layer: its weights, and how many of them are kept


def legacy_kept_count(n: int, density: float) -> int:
    """Number of weights that the original keeps of a layer of `n`: n - int((1 - k) n) in double precision.

    Args:
        n: weights of the layer, >= 0.
        density: k, the fraction kept, in (0, 1].
    Raises: ConfigError if `density` is outside its range.
    Source: reference/hydra.md section 2.1. At k = 0.9 and n = 10 it keeps 10; `kept_count` keeps 9.
    """
    if not 0 < density <= 1:
        raise ConfigError(f"density {density} is outside (0, 1]; to prune 99% of the weights write 0.01")
    return n - int((1 - density) * n)


def infer_density(layers: Collection[LayerDensity]) -> float | None:
    """The shortest decimal k at which the original leaves exactly the `nonzero` weights of every layer.

    Returns: None if there is no such k.
    """
    low = max(Fraction(layer.nonzero - 1, layer.weights) for layer in layers)
    high = min(Fraction(layer.nonzero, layer.weights) for layer in layers)
    for digits in range(12):
        for numerator in range(math.floor(low * 10**digits), math.ceil(high * 10**digits) + 1):
            density: float = numerator / 10**digits
            if 0 < density <= 1 and all(legacy_kept_count(one.weights, density) == one.nonzero for one in layers):
                return density
    return None


def exact_density(counts: Counts, density: float) -> float | None:
    """The density, next to the original's k, at which the exact rule keeps `counts`; None if there is none."""
    return _nearby(density, lambda k: all(kept_count(n, k) == kept for n, kept in counts))


def sufficient_density(counts: Counts, density: float) -> float | None:
    """Like `exact_density`, but the exact rule may keep more."""
    return _nearby(density, lambda k: all(kept_count(n, k) >= kept for n, kept in counts))


def legacy_density(counts: Counts, density: float) -> float | None:
    """The original's k, next to a density of ours, at which it keeps `counts`; None if there is none."""
    return _nearby(density, lambda k: all(legacy_kept_count(n, k) == kept for n, kept in counts))


def keep(mask: ScoreMask, kept: int) -> None:
    """Make a mask select the `kept` weights, at least one, that the original would; see "Ties" above."""
    scores = mask.scores.detach()
    size = scores.abs().flatten()
    smallest = size.topk(kept, sorted=False).values.min()
    chosen = size >= smallest
    surplus = int(chosen.sum()) - kept
    if surplus:
        chosen[(size == smallest).nonzero().flatten()[:surplus]] = False
        mask.scores.data = settled(scores, chosen.view_as(scores))
    mask.kept = kept
    mask.freeze()


def settled(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores that select `mask` and no other: where a kept |score| equals a pruned one, it grows by one float.

    Args:
        scores: any shape; no pruned |score| is larger than a kept one.
        mask: 0/1, the shape of `scores`.
    """
    size, inside = scores.abs(), mask.bool()
    if inside.all() or not inside.any() or size[inside].min() > size[~inside].max():
        return scores.clone()
    tied = inside & (size == size[inside].min())
    return torch.where(tied, torch.nextafter(scores, torch.copysign(torch.full_like(scores, math.inf), scores)), scores)


def _nearby(density: float, fits: Callable[[float], bool]) -> float | None:
    """`density` or one of its neighbours among the floats in (0, 1], whichever fits first."""
    candidates = (density, math.nextafter(density, 1), math.nextafter(density, 0))
    return next((k for k in candidates if 0 < k <= 1 and fits(k)), None)
