"""Data sets: uint8 images, in memory or decoded when asked for; blocks for evaluation, minibatches for training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from hydrabench.config import DataRecipe
from hydrabench.data.augment import augment
from hydrabench.data.choosing import Choice, choose
from hydrabench.data.cifar import load_cifar10, load_cifar100
from hydrabench.data.class_names import CIFAR10, CIFAR100, DIGITS
from hydrabench.data.digits import load_digits
from hydrabench.data.given import given_images
from hydrabench.data.imagenet import load_imagenet
from hydrabench.data.images import (
    Block,
    ImageSet,
    ImageSource,
    batches,
    block_indices,
    check_labels,
    load_block,
    pixels,
    validation_split,
)
from hydrabench.data.loaders import TrainingBatches
from hydrabench.data.own_images import is_own, load_own
from hydrabench.data.pseudo_labels import load_pseudo_labels
from hydrabench.data.svhn import load_svhn
from hydrabench.errors import DataError, lookup
from hydrabench.runtime import stream


class Loader(Protocol):
    """Returns the "train" or "test" split found in a folder."""

    def __call__(self, split: str, folder: Path | None, *, download: bool = False) -> ImageSource:
        """Load one split."""


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is loaded; an entry of `DATASETS`.

    shape: of its images, (C, H, W). num_classes: labels are below it. load: its loader.
    train, test: how many images each split has as published; those that lie in --data-dir may be fewer.
    class_names: by label; empty where they are not written down.
    """

    shape: tuple[int, int, int]
    num_classes: int
    load: Loader
    train: int
    test: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"{self.num_classes} classes need as many names, got {len(self.class_names)}")


DATASETS: dict[str, DataSet] = {
    "cifar10": DataSet((3, 32, 32), 10, load_cifar10, 50_000, 10_000, CIFAR10),
    "cifar100": DataSet((3, 32, 32), 100, load_cifar100, 50_000, 10_000, CIFAR100),
    "digits": DataSet((1, 8, 8), 10, load_digits, 1_297, 500, DIGITS),
    "imagenet": DataSet((3, 224, 224), 1000, load_imagenet, 1_281_167, 50_000),
    "svhn": DataSet((3, 32, 32), 10, load_svhn, 73_257, 26_032, DIGITS),
}


def load_images(name: str, split: str, folder: Path | None = None, *, download: bool = False) -> ImageSource:
    """Load one split of a registered data set, or the user's own test images, in a fixed order.

    Any prefix is a fair sample.
    Digits, CIFAR and SVHN keep the order of their files; for ImageNet see `load_imagenet`.

    Args:
        name: a key of `DATASETS`, or FORM:PATH for files of the user's own, see `own_images`.
        split: "train" or "test".
        folder: where data sets lie; None takes the environment variable HYDRABENCH_DATA if it is set.
        download: fetch what is missing, where that is possible.
    Raises: ConfigError for an unknown data set, DataError if it is not there or damaged.
    """
    if is_own(name):
        if split != "test":
            raise DataError(f"{name} has no {split} images: files of your own are evaluated, not trained on")
        return load_own(name)
    dataset = lookup("data set", DATASETS, name)
    folder = _data_folder(folder)
    if folder is not None and not folder.is_dir() and not download:
        raise DataError(f"data folder {str(folder)!r} does not exist; correct --data-dir or HYDRABENCH_DATA")
    images = dataset.load(split, folder, download=download)
    if images.shape != dataset.shape:
        raise DataError(f"{name} images should be {dataset.shape}, found {images.shape}")
    check_labels(images, name)
    return images


@dataclass(frozen=True)
class TrainingImages:
    """What a phase trains on: labelled images, pseudo-labelled ones if the recipe has some, and those held out."""

    labelled: ImageSource
    pseudo: ImageSource | None
    validation: ImageSource

    def counts(self) -> dict[str, int]:
        """How many images there are of each kind, as `run.json` says it."""
        pseudo = {"pseudo_labelled": len(self.pseudo)} if self.pseudo is not None else {}
        return {"train": len(self.labelled), "validation": len(self.validation), **pseudo}


def load_training_images(
    settings: DataRecipe, folder: Path | None = None, *, seed: int, download: bool = False
) -> TrainingImages:
    """Load the images of a recipe's `data:` section.

    The validation split comes first and is the same for every `fraction` and seed; the fraction is drawn from what it
    leaves. Smaller fractions of one seed are parts of larger ones.

    Args:
        settings: which images. seed: of the recipe; the fraction depends on it.
        folder, download: as for `load_images`. A relative path of pseudo-labels begins there.
    Raises: as `load_images`; DataError if a part would be empty, or the pseudo-labelled images do not fit.
    """
    images = load_images(settings.name, "train", folder, download=download)
    labelled, validation = validation_split(images, settings.validation_fraction)
    count = round(settings.fraction * len(labelled))
    if count == 0:
        raise DataError(f"data.fraction {settings.fraction} of {len(labelled)} training images leaves none")
    if count < len(labelled):
        order = torch.randperm(len(labelled), generator=stream(seed, "data fraction"))
        labelled = labelled.subset(order[:count].sort().values, "train")
    return TrainingImages(labelled, _pseudo_labelled(settings, folder), validation)


def _pseudo_labelled(settings: DataRecipe, folder: Path | None) -> ImageSource | None:
    if settings.pseudo_labels is None:
        return None
    dataset = DATASETS[settings.name]
    path = (_data_folder(folder) or Path("data")) / settings.pseudo_labels.path
    return load_pseudo_labels(
        path,
        settings.pseudo_labels.fraction,
        name=settings.name,
        shape=dataset.shape,
        num_classes=dataset.num_classes,
        class_names=dataset.class_names,
    )


def _data_folder(given: Path | None) -> Path | None:
    """Where data sets lie, if that was said."""
    if given is None and os.environ.get("HYDRABENCH_DATA"):
        return Path(os.environ["HYDRABENCH_DATA"])
    return given


def first_images(images: ImageSource, n: int | None) -> int:
    """Return how many of the first images to take: `n`, or all if None.

    Raises: DataError if there are fewer than `n`.
    """
    return len(choose(images, Choice(n)))


__all__ = [
    "DATASETS",
    "Block",
    "Choice",
    "DataSet",
    "ImageSet",
    "ImageSource",
    "TrainingBatches",
    "TrainingImages",
    "augment",
    "batches",
    "block_indices",
    "choose",
    "first_images",
    "given_images",
    "load_block",
    "load_images",
    "load_training_images",
    "pixels",
    "validation_split",
]
