"""The weights that every layer of an imported network keeps, and their number.

The original keeps n - int((1 - k) n) weights of a layer, evaluated in floating point, which at some k is one more
than our exact rule keeps; the header then lists what each layer keeps. A dense file shows its k by its zeros. Kept
weights may be zero, and files of other pruning rules have no k: these keep what is not zero, layer by layer.

Ties. The original sorts |scores| and prunes the first; which of several equal scores at the boundary come
first is up to the sort. We take them in the order of the tensor, as a stable sort does, and move the kept
ones of them by one float away from zero, so that the scores alone say what is kept, whoever sorts them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from hydrabench.errors import CheckpointError, ConfigError
from hydrabench.masking import LayerDensity, ScoreMask, kept_count, layer_densities, prunable_layers

Counts = Collection[tuple[int, int]]  # of every layer: its weights, and how many of them are kept
# Of the kept weights, the fraction that may be zero although a given density says that they are kept:
# training leaves a few at exactly zero. More means that the density is not the file's.
STRAY_ZEROS = 0.01
# An unpruned layer of n weights may have 1 + n · this many zeros by chance.
CHANCE = 1e-5


@dataclass(frozen=True)
class LayerCounts:
    """The numbers of weights that a network keeps.

    density: the fraction of weights, as the pruning was asked for. counts: the weights of each layer.
    """

    density: float
    counts: dict[str, int]


def counts_of_dense(
    path: Path,
    network: nn.Module,
    density: float | None,
    *,
    masks: Mapping[str, int] | None = None,
    at_most: Mapping[str, int] | None = None,
) -> LayerCounts:
    """Return what the layers of a dense network keep.

    Args:
        path: named in errors.
        density: the original's k, if it is known: the zeros must fit it. None: what the zeros say.
        masks: what the masks in the file keep, by layer, where it had any.
        at_most: counts that no layer may exceed, instead of the original's at `density`.
    Raises: CheckpointError if the zeros do not fit, ConfigError if the density is out of range.
    """
    layers = layer_densities(network)
    if density is not None:
        counts = dict(at_most or {layer.name: hydra_kept_count(layer.weights, density) for layer in layers})
        _require_fit(path, layers, counts, density, exact=at_most is None)
        return LayerCounts(density, counts)
    if masks and set(masks) == {layer.name for layer in layers}:
        counts = {name: max(1, count) for name, count in masks.items()}
        return LayerCounts(_overall(layers, counts), counts)
    if all(layer.weights - layer.nonzero <= 1 + CHANCE * layer.weights for layer in layers):
        return LayerCounts(1.0, {layer.name: layer.weights for layer in layers})
    counts = {layer.name: max(1, layer.nonzero) for layer in layers}
    found, tidy = infer_density(layers), _tidy_density(layers)
    if found is None or (tidy is not None and len(repr(found)) > len(repr(tidy))):
        found = tidy
    return LayerCounts(found or _overall(layers, counts), counts)


def counts_of_masked(network: nn.Module, density: float) -> LayerCounts:
    """Return what the original keeps of every layer at a density. Raises: ConfigError if it is out of range."""
    sizes = {name: layer.weight.numel() for name, layer in prunable_layers(network).items()}
    return LayerCounts(density, {name: hydra_kept_count(n, density) for name, n in sizes.items()})


def hydra_kept_count(n: int, density: float) -> int:
    """Number of weights that the original keeps of a layer of `n`: n - int((1 - k) n) in double precision.

    Args:
        n: weights of the layer, >= 0.
        density: k, the fraction kept, in (0, 1].
    Raises: ConfigError if `density` is outside its range.
    Source: HYDRA's code, whose mask this is. At k = 0.9 and n = 10 it keeps 10; `kept_count` keeps 9.
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
            if 0 < density <= 1 and all(hydra_kept_count(one.weights, density) == one.nonzero for one in layers):
                return density
    return None


def hydra_density(counts: Counts, density: float) -> float | None:
    """The original's k, next to a density of ours, at which it keeps `counts`; None if there is none."""
    candidates = (density, math.nextafter(density, 1), math.nextafter(density, 0))
    return next(
        (k for k in candidates if 0 < k <= 1 and all(hydra_kept_count(n, k) == kept for n, kept in counts)), None
    )


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


def _require_fit(
    path: Path, layers: Collection[LayerDensity], counts: Mapping[str, int], density: float, *, exact: bool
) -> None:
    """Raise for a density that the zeros of a file contradict; with `exact`, also if too many kept weights are zero."""
    fitting = infer_density(layers)
    hint = f"its zeros fit {fitting}" if fitting else "without a density, it keeps what is not zero"
    for layer in layers:
        if layer.nonzero > counts[layer.name]:
            raise CheckpointError(
                f"density {density} does not fit the zeros in {path}: layer {layer.name} has {layer.nonzero} "
                f"weights that are not zero instead of {counts[layer.name]}; {hint}"
            )
    nonzero, kept = sum(layer.nonzero for layer in layers), sum(counts.values())
    if exact and nonzero < (1 - STRAY_ZEROS) * kept:
        raise CheckpointError(
            f"density {density} does not fit the zeros in {path}: it keeps {kept} weights, the file has "
            f"{nonzero} that are not zero; {hint}"
        )


def _tidy_density(layers: Collection[LayerDensity]) -> float | None:
    """The smallest k of three decimals that covers every layer and leaves few kept weights at zero; None if none."""
    least = max(Fraction(layer.nonzero - 1, layer.weights) for layer in layers)
    for numerator in range(max(1, math.floor(least * 1000)), 1000):
        k = numerator / 1000
        counts = {layer.name: kept_count(layer.weights, k) for layer in layers}
        if all(layer.nonzero <= counts[layer.name] for layer in layers):
            few = all(layer.nonzero >= (1 - STRAY_ZEROS / 10) * counts[layer.name] - 1 for layer in layers)
            return k if few else None
    return None


def _overall(layers: Collection[LayerDensity], counts: Mapping[str, int]) -> float:
    """The fraction of all weights that is kept, to six decimals if that is above 0."""
    exact = sum(counts.values()) / sum(layer.weights for layer in layers)
    return round(exact, 6) or exact
