"""Data sets: uint8 images in memory, blocks for evaluation, augmentation for training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hydrabench.data.augment import augment
from hydrabench.data.cifar import load_cifar10, load_cifar100
from hydrabench.data.digits import load_digits
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
from hydrabench.data.svhn import load_svhn
from hydrabench.errors import DataError, lookup


class Loader(Protocol):
    """Returns the "train" or "test" split found in a folder."""

    def __call__(self, split: str, folder: Path | None, *, download: bool = False) -> ImageSource:
        """Load one split."""


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is loaded: image shape (C, H, W), classes, and its loader."""

    shape: tuple[int, int, int]
    num_classes: int
    load: Loader


DATASETS: dict[str, DataSet] = {
    "cifar10": DataSet((3, 32, 32), 10, load_cifar10),
    "cifar100": DataSet((3, 32, 32), 100, load_cifar100),
    "digits": DataSet((1, 8, 8), 10, load_digits),
    "svhn": DataSet((3, 32, 32), 10, load_svhn),
}


def load_images(name: str, split: str, folder: Path | None = None, *, download: bool = False) -> ImageSource:
    """Load one split of a registered data set.

    Args:
        name: a key of `DATASETS`.
        split: "train" or "test".
        folder: where data sets lie; None takes the environment variable HYDRABENCH_DATA if it is set.
        download: fetch what is missing, where that is possible.
    Raises: ConfigError for an unknown data set, DataError if it is not there or damaged.
    """
    dataset = lookup("data set", DATASETS, name)
    if folder is None and os.environ.get("HYDRABENCH_DATA"):
        folder = Path(os.environ["HYDRABENCH_DATA"])
    if folder is not None and not folder.is_dir() and not download:
        raise DataError(f"data folder {str(folder)!r} does not exist; correct --data-dir or HYDRABENCH_DATA")
    images = dataset.load(split, folder, download=download)
    if images.shape != dataset.shape:
        raise DataError(f"{name} images should be {dataset.shape}, found {images.shape}")
    check_labels(images, name)
    return images


def first_images(images: ImageSource, n: int | None) -> int:
    """Return how many of the first images to take: `n`, or all if None.

    Raises: DataError if there are fewer than `n`.
    """
    if n is not None and not 1 <= n <= len(images):
        raise DataError(f"-n {n} is outside 1..{len(images)}, the {images.split} images of {images.name}")
    return n or len(images)


__all__ = [
    "DATASETS",
    "Block",
    "DataSet",
    "ImageSet",
    "ImageSource",
    "TrainingBatches",
    "augment",
    "batches",
    "block_indices",
    "first_images",
    "load_block",
    "load_images",
    "pixels",
    "validation_split",
]
