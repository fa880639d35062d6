"""Architectures: plain torch.nn modules that know nothing about masks or phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from hydrabench.errors import ConfigError, lookup
from hydrabench.models.cnn import LARGE, SMALL, VGG4, sequential_cnn
from hydrabench.models.normalize import Normalize, inner_network, normalized
from hydrabench.models.vgg import VGG16, vgg

Builder = Callable[[tuple[int, int, int], int], nn.Module]

# name -> (image shape (C, H, W), number of classes) -> network
MODELS: dict[str, Builder] = {
    "cifar_model": partial(sequential_cnn, SMALL),
    "cifar_model_bn": partial(sequential_cnn, SMALL, batch_norm=True),
    "cifar_model_large": partial(sequential_cnn, LARGE),
    "mnist_model": partial(sequential_cnn, SMALL),
    "mnist_model_large": partial(sequential_cnn, LARGE),
    "vgg4_without_maxpool": partial(sequential_cnn, VGG4),
    "vgg16_bn": partial(vgg, VGG16),
}


def build_model(
    arch: str,
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Build a network of a registered architecture with fresh weights.

    Args:
        arch: a key of `MODELS`.
        shape: (channels, height, width) of the images.
        num_classes: number of logits.
        normalization: (mean, std) per channel to put in front, or None for networks that take [0, 1].
        generator: where the initial weights come from; None leaves that to torch's global state, which
            is untouched otherwise.
    Raises: ConfigError for an unknown architecture, or images it cannot take.
    """
    builder = lookup("architecture", MODELS, arch)
    if normalization and len(normalization[0]) != shape[0]:
        raise ConfigError(f"normalization has {len(normalization[0])} channels, the images have {shape[0]}")
    with torch.random.fork_rng(devices=[]):
        if generator is not None:
            torch.manual_seed(generator.initial_seed())
        try:
            network = builder(shape, num_classes)
        except ValueError as error:
            raise ConfigError(f"architecture {arch!r}: {error}; choose another of: {', '.join(MODELS)}") from error
    return normalized(network, *normalization) if normalization else network


__all__ = ["MODELS", "Normalize", "build_model", "inner_network", "normalized"]
