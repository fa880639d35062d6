"""The number of weights that a density keeps, in exact arithmetic, by layer or overall, and that a network keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Literal

from torch import nn

from hydrabench.errors import ConfigError

# Every layer has a budget of its own; all share one, by their scores; all share one, by keep rates that are learned.
Scope = Literal["layer", "global", "learned"]


def kept_count(n: int, density: float) -> int:
    """Number of weights that a layer of `n` weights keeps: n - floor((1 - k) n), in exact arithmetic.

    Args:
        n: weights of the layer, >= 0.
        density: k, the fraction kept, in (0, 1]; 0.1 means one tenth, not its binary neighbour.
    Raises: ConfigError if `density` is outside its range.
    Source: HYDRA's rule (arXiv:2002.10509, section 3) without its rounding error: the original
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


def kept_counts(
    network: nn.Module, density: float | Mapping[str, float], kept: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Number of weights that every prunable layer keeps where each has a budget of its own.

    Args:
        density: one fraction for all layers, or one for each by its name.
        kept: the numbers themselves, if they are known; then `density` is not used.
    Raises: ConfigError if a fraction or number is out of range, or names are unknown or missing.
    """
    layers = prunable_layers(network)
    if kept is not None:
        _require_names("kept", kept, layers)
        for name, layer in layers.items():
            if not 1 <= kept[name] <= layer.weight.numel():
                raise ConfigError(f"layer {name} has {layer.weight.numel()} weights and cannot keep {kept[name]}")
        return {name: kept[name] for name in layers}
    if isinstance(density, Mapping):
        _require_names("density", density, layers)
    return {name: kept_count(layer.weight.numel(), _of_layer(density, name)) for name, layer in layers.items()}


def total_kept(network: nn.Module, density: float) -> int:
    """Number of weights that all layers together keep under one shared budget, at least one of each layer.

    Raises: ConfigError if `density` is out of range, or keeps fewer weights than there are layers.
    """
    layers = prunable_layers(network)
    weights = sum(layer.weight.numel() for layer in layers.values())
    kept = kept_count(weights, density)
    if kept < len(layers):
        raise ConfigError(
            f"density {density} keeps {kept} of {weights} weights, fewer than the {len(layers)} layers, each of which "
            f"needs one; keep at least {-(-len(layers) * 1000 // weights) / 1000:g}"
        )
    return kept


def overall_density(network: nn.Module, density: float | Mapping[str, float], scope: Scope) -> float:
    """The fraction of all prunable weights that a budget asks for: `density` itself if it is one number.

    Raises: ConfigError if the budget does not fit the network, see `kept_counts` and `total_kept`.
    """
    if not isinstance(density, Mapping):
        if scope == "layer":
            kept_count(0, density)
        else:
            total_kept(network, density)
        return density
    if scope != "layer":
        raise ConfigError(f"a {scope} budget is one density, not one for each layer; leave `scope: {scope}` out")
    kept_counts(network, density)
    sizes = {name: layer.weight.numel() for name, layer in prunable_layers(network).items()}
    asked = sum(Fraction(str(density[name])) * size for name, size in sizes.items())
    return float(asked / sum(sizes.values()))


def rescale_weights(network: nn.Module, density: float | Mapping[str, float]) -> None:
    """Multiply the weights of every prunable layer by 1 / sqrt(k), in place, once.

    A random mask of density k then leaves the variance of a layer's outputs as it was: for sparse networks
    that are trained from scratch without batch norm. With a mapping, every layer has its own k; under a
    global budget, k is the overall one, since the masks are chosen after it.
    Source: `scale_rand_init` of HYDRA's code. The original calls it twice by mistake, so that
        its factor is 1 / k (pitfall P13); we do not.
    """
    for name, layer in prunable_layers(network).items():
        layer.weight.data.mul_(_of_layer(density, name) ** -0.5)


def _of_layer(density: float | Mapping[str, float], name: str) -> float:
    return density[name] if isinstance(density, Mapping) else density


def _require_names(what: str, given: Mapping[str, object], layers: Mapping[str, object]) -> None:
    """Refuse a mapping whose keys are not exactly the layers."""
    unknown, missing = [name for name in given if name not in layers], [name for name in layers if name not in given]
    problems = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(missing)
    if problems:
        raise ConfigError(
            f"{what} by layer does not fit the network: {'; '.join(problems)}; give exactly one value for each of "
            f"its layers: {', '.join(layers)}"
        )


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
