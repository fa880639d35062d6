"""How many weights a density keeps, in exact arithmetic, and what a network really keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from torch import nn

from hydrabench.errors import ConfigError


def kept_count(n: int, density: float) -> int:
    """Number of weights that a layer of `n` weights keeps: n - floor((1 - k) n), in exact arithmetic.

    Args:
        n: weights of the layer, >= 0.
        density: k, the fraction kept, in (0, 1]; 0.1 means one tenth, not its binary neighbour.
    Raises: ConfigError if `density` is outside its range.
    Source: HYDRA's rule (reference/hydra.md section 2.1) without its rounding error: the original
        evaluates 1 - k in floating point and keeps one weight too many at k = 0.9 and n = 10.
    """
    if not 0 < density <= 1:
        raise ConfigError(f"density {density} is outside (0, 1]; to prune 99% of the weights write 0.01")
    return n - floor((1 - Fraction(str(density))) * n)


@dataclass(frozen=True)
class LayerDensity:
    """Weights of one prunable layer, and how many of them are not zero."""

    name: str
    weights: int
    nonzero: int

    @property
    def density(self) -> float:
        """Fraction of weights that are not zero."""
        return self.nonzero / self.weights


def used_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`network.named_modules()` without those that compute nothing.

    Left out is every module whose attribute `unused_in_forward` is true, with all below it. The wide
    ResNets carry such a part, for the sake of their files only; counted, it would be 4.3% of the weights of
    wrn_28_10.
    """
    unused: set[nn.Module] = set()
    for name, module in network.named_modules():  # a module comes before those below it
        if getattr(module, "unused_in_forward", False):
            unused.update(module.modules())
        if module not in unused:
            yield name, module


def used_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that a network computes with: what counts as its size, and what may be trained.

    Those of a masked layer are its stored weight, its scores and its bias.
    """
    found = [parameter for _, module in used_modules(network) for parameter in module.parameters(recurse=False)]
    return list(dict.fromkeys(found))  # one that layers share counts once


def prunable_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers whose weights a mask selects from: every Conv2d and Linear in use, by qualified name."""
    return {name: layer for name, layer in used_modules(network) if isinstance(layer, nn.Conv2d | nn.Linear)}


def layer_densities(network: nn.Module) -> list[LayerDensity]:
    """Count the weights that each prunable layer really applies (masked, if it has a mask)."""
    return [
        LayerDensity(name, layer.weight.numel(), int(layer.weight.count_nonzero()))
        for name, layer in prunable_layers(network).items()
    ]


def global_density(network: nn.Module) -> float:
    """Fraction of all prunable weights that are not zero, biases and batch norm left out."""
    layers = layer_densities(network)
    return sum(layer.nonzero for layer in layers) / sum(layer.weights for layer in layers)
