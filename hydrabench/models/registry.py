"""The registry of architectures, and networks built from it with fresh weights. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from hydrabench.errors import ConfigError, lookup
from hydrabench.models.cnn import CNN7, LARGE, SMALL, VGG4, sequential_cnn
from hydrabench.models.vgg import LAYOUTS, vgg

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """A network that can be built with fresh weights; an entry of `MODELS`.

    build: (image shape (C, H, W), number of classes) -> network of images in [0, 1] or normalised ones, (B, C, H, W),
        to logits. A ValueError means images that are too small.
    shape, num_classes: the only ones that it can be built for; None: any.
    """

    build: Callable[[tuple[int, int, int], int], nn.Module]
    shape: tuple[int, int, int] | None = None
    num_classes: int | None = None

    def misfit(self, shape: tuple[int, int, int], num_classes: int) -> str | None:
        """Return why it cannot be built for such images, as far as that is known beforehand; None if it can."""
        wanted = {"images": (self.shape, tuple(shape)), "classes": (self.num_classes, num_classes)}
        found = [f"{what} {mine}, got {given}" for what, (mine, given) in wanted.items() if mine not in (None, given)]
        return f"is for {' and '.join(found)}" if found else None


def _resnet(
    kind: Literal["cifar", "imagenet", "thin"], depth: int, shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """Build a ResNet for small images, for ImageNet, or one of few channels; see `resnet`."""
    from hydrabench.models import resnet

    build = {"cifar": resnet.cifar_resnet, "imagenet": resnet.imagenet_resnet, "thin": resnet.thin_resnet}[kind]
    return build(depth, shape, num_classes)


def _wide_resnet(depth: int, width: int, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build a wide ResNet; see `wide_resnet.wide_resnet`."""
    from hydrabench.models import wide_resnet as module

    return module.wide_resnet(depth, width, shape, num_classes)


# The names are the original's: lower-case ResNets are for CIFAR, capitalised ones for ImageNet.
MODELS: dict[str, Architecture] = {
    "cifar_model": Architecture(partial(sequential_cnn, SMALL)),
    "cifar_model_bn": Architecture(partial(sequential_cnn, SMALL, batch_norm=True)),
    "cifar_model_large": Architecture(partial(sequential_cnn, LARGE)),
    "cnn7": Architecture(partial(sequential_cnn, CNN7, batch_norm=True, linear_batch_norm=True)),
    "mnist_model": Architecture(partial(sequential_cnn, SMALL)),
    "mnist_model_large": Architecture(partial(sequential_cnn, LARGE)),
    "vgg4_without_maxpool": Architecture(partial(sequential_cnn, VGG4)),
    "vgg2": Architecture(partial(vgg, LAYOUTS[2])),
    "vgg2_bn": Architecture(partial(vgg, LAYOUTS[2], batch_norm=True)),
    "vgg4": Architecture(partial(vgg, LAYOUTS[4])),
    "vgg4_bn": Architecture(partial(vgg, LAYOUTS[4], batch_norm=True)),
    "vgg6": Architecture(partial(vgg, LAYOUTS[6])),
    "vgg6_bn": Architecture(partial(vgg, LAYOUTS[6], batch_norm=True)),
    "vgg8": Architecture(partial(vgg, LAYOUTS[8])),
    "vgg8_bn": Architecture(partial(vgg, LAYOUTS[8], batch_norm=True)),
    "vgg11": Architecture(partial(vgg, LAYOUTS[11])),
    "vgg11_bn": Architecture(partial(vgg, LAYOUTS[11], batch_norm=True)),
    "vgg13": Architecture(partial(vgg, LAYOUTS[13])),
    "vgg13_bn": Architecture(partial(vgg, LAYOUTS[13], batch_norm=True)),
    "vgg16": Architecture(partial(vgg, LAYOUTS[16])),
    "vgg16_bn": Architecture(partial(vgg, LAYOUTS[16], batch_norm=True)),
    "resnet18": Architecture(partial(_resnet, "cifar", 18)),
    "resnet34": Architecture(partial(_resnet, "cifar", 34)),
    "resnet50": Architecture(partial(_resnet, "cifar", 50)),
    "resnet101": Architecture(partial(_resnet, "cifar", 101)),
    "resnet152": Architecture(partial(_resnet, "cifar", 152)),
    "resnet110": Architecture(partial(_resnet, "thin", 110)),
    "wrn_10_1": Architecture(partial(_wide_resnet, 10, 1)),
    "wrn_28_1": Architecture(partial(_wide_resnet, 28, 1)),
    "wrn_28_4": Architecture(partial(_wide_resnet, 28, 4)),
    "wrn_28_10": Architecture(partial(_wide_resnet, 28, 10)),
    "wrn_34_10": Architecture(partial(_wide_resnet, 34, 10)),
    "wrn_40_2": Architecture(partial(_wide_resnet, 40, 2)),
    "ResNet18": Architecture(partial(_resnet, "imagenet", 18)),
    "ResNet34": Architecture(partial(_resnet, "imagenet", 34)),
    "ResNet50": Architecture(partial(_resnet, "imagenet", 50)),
    "ResNet101": Architecture(partial(_resnet, "imagenet", 101)),
    "ResNet152": Architecture(partial(_resnet, "imagenet", 152)),
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
    import torch

    from hydrabench.models.normalize import normalized

    architecture = lookup("architecture", MODELS, arch)
    if misfit := architecture.misfit(shape, num_classes):
        raise ConfigError(f"architecture {arch!r} {misfit}; choose another one, or other data")
    if normalization and len(normalization[0]) != shape[0]:
        raise ConfigError(f"normalization has {len(normalization[0])} channels, the images have {shape[0]}")
    with torch.random.fork_rng(devices=[]):
        if generator is not None:
            torch.manual_seed(generator.initial_seed())
        try:
            network = architecture.build(shape, num_classes)
        except ValueError as error:
            raise ConfigError(
                f"architecture {arch!r}: {error}; take larger images, or an architecture for small ones "
                "such as cifar_model, which needs 4x4"
            ) from error
    return normalized(network, *normalization) if normalization else network
