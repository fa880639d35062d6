"""The registry of data sets: what is known of each before it is loaded, and loading one split.

Importing it imports no torch: what is known of a data set is read where nothing is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hydrabench.data.class_names import CIFAR10, CIFAR100, DIGITS, FASHION_MNIST
from hydrabench.data.forms import is_own
from hydrabench.errors import DataError, lookup

if TYPE_CHECKING:
    from hydrabench.data.images import ImageSource


class Loader(Protocol):
    """Returns the "train" or "test" split found in a folder."""

    def __call__(self, split: str, folder: Path | None, *, download: bool = False) -> ImageSource:
        """Load one split."""


@dataclass(frozen=True)
class DataSet:
    """A data set as it is known before it is loaded; an entry of `DATASETS`.

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


def _load(loader: str, split: str, folder: Path | None, *, download: bool = False) -> ImageSource:
    """Load one split by MODULE.FUNCTION of this package."""
    module, _, name = loader.partition(".")
    load: Loader = getattr(import_module(f"hydrabench.data.{module}"), name)
    return load(split, folder, download=download)


def _by(loader: str) -> Loader:
    return partial(_load, loader)


DATASETS: dict[str, DataSet] = {
    "cifar10": DataSet((3, 32, 32), 10, _by("cifar.load_cifar10"), 50_000, 10_000, CIFAR10),
    "cifar100": DataSet((3, 32, 32), 100, _by("cifar.load_cifar100"), 50_000, 10_000, CIFAR100),
    "digits": DataSet((1, 8, 8), 10, _by("digits.load_digits"), 1_297, 500, DIGITS),
    "fashionmnist": DataSet((1, 28, 28), 10, _by("mnist.load_fashion_mnist"), 60_000, 10_000, FASHION_MNIST),
    "imagenet": DataSet((3, 224, 224), 1000, _by("imagenet.load_imagenet"), 1_281_167, 50_000),
    "mnist": DataSet((1, 28, 28), 10, _by("mnist.load_mnist"), 60_000, 10_000, DIGITS),
    "svhn": DataSet((3, 32, 32), 10, _by("svhn.load_svhn"), 73_257, 26_032, DIGITS),
}


def load_images(name: str, split: str, folder: Path | None = None, *, download: bool = False) -> ImageSource:
    """Load one split of a registered data set, or images of the user's own, in a fixed order.

    Any prefix is a fair sample.
    Digits, MNIST, CIFAR and SVHN keep the order of their files; for ImageNet see `load_imagenet`.

    Args:
        name: a key of `DATASETS`, or FORM:PATH for files of the user's own, see `own_images`.
        split: "train" or "test".
        folder: where data sets lie; None takes the environment variable HYDRABENCH_DATA if it is set.
        download: fetch what is missing, where that is possible.
    Raises: ConfigError for an unknown data set, DataError if it is not there or damaged.
    """
    from hydrabench.data.images import check_labels
    from hydrabench.data.own_images import load_own

    if is_own(name):
        return load_own(name, split)
    dataset = lookup("data set", DATASETS, name)
    folder = data_folder(folder)
    require_folder(folder, download=download)
    images = dataset.load(split, folder, download=download)
    if images.shape != dataset.shape:
        raise DataError(f"{name} images should be {dataset.shape}, found {images.shape}")
    check_labels(images, name)
    return images


def require_folder(folder: Path | None, *, download: bool) -> None:
    """Raise DataError for a folder of data sets that is not there, unless they are fetched into it."""
    if folder is not None and not folder.is_dir() and not download:
        raise DataError(f"data folder {str(folder)!r} does not exist; correct --data-dir or HYDRABENCH_DATA")


def data_folder(given: Path | None) -> Path | None:
    """Return the folder of the data sets: the given one, else HYDRABENCH_DATA, else None."""
    if given is None and os.environ.get("HYDRABENCH_DATA"):
        return Path(os.environ["HYDRABENCH_DATA"])
    return given
