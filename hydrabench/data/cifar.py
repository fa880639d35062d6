"""CIFAR-10 and CIFAR-100, from a folder of Parquet files in the Hugging Face layout or from torchvision's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hydrabench.data.class_names import CIFAR10 as CIFAR10_NAMES
from hydrabench.data.class_names import CIFAR100 as CIFAR100_NAMES
from hydrabench.data.images import ImageSet
from hydrabench.data.parquet import find_parquet, places_of, read_parquet
from hydrabench.errors import DataError

SHAPE = (3, 32, 32)
DEFAULT_FOLDER = Path("data")
VARIANTS = {"CIFAR-10": ("cifar10", 10), "CIFAR-100": ("cifar100", 100)}


def load_cifar10(split: str, folder: Path | None, *, download: bool = False) -> ImageSet:
    """Return CIFAR-10's "train" or "test" images.

    Looked for, in this order: `folder/cifar10/{split}-*.parquet`, the same in `plain_text` (as on the hub),
    `folder/{split}-*.parquet`, and torchvision's `folder/cifar-10-batches-py`, which `download` fetches.
    Without a folder, and if torchvision's is not in `data` either, the test images are the 200 that come with
    hydrabench, with 20 of each class: enough to try things.
    Raises: DataError that says how to get the data if none of them is there.
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    if folder is not None:
        files = find_parquet([*places_of(folder, "cifar10", "plain_text"), folder], split)
        if files:
            return read_parquet(files, "cifar10", split, shape=SHAPE, num_classes=10, class_names=CIFAR10_NAMES)
    elif split == "test" and not download and not (DEFAULT_FOLDER / "cifar-10-batches-py").is_dir():
        return sample_of_cifar10()
    from torchvision.datasets import CIFAR10  # noqa: PLC0415 - slow to import

    return _from_torchvision(CIFAR10, "CIFAR-10", split, folder, download=download)


def sample_of_cifar10() -> ImageSet:
    """Return the 200 test images that come with hydrabench, 20 of each class; their classes take turns."""
    files = find_parquet([Path(__file__).parent / "samples" / "cifar10"], "test")
    return read_parquet(files, "cifar10", "test", shape=SHAPE, num_classes=10, class_names=CIFAR10_NAMES)


def load_cifar100(split: str, folder: Path | None, *, download: bool = False) -> ImageSet:
    """Return CIFAR-100's "train" or "test" images with their fine labels, 0..99.

    Looked for, in this order: `folder/cifar100/{split}-*.parquet`, the same in `cifar100/cifar100` (as on the hub)
    or in `folder` itself if that is called cifar100, and torchvision's `folder/cifar-100-python`, which `download`
    fetches. Files of CIFAR-10 are never taken for it: the original HYDRA evaluated CIFAR-100 on CIFAR-10's test set.
    Raises: DataError that says how to get the data if none of them is there.
    Source: as of CIFAR-10.
    """
    files = find_parquet(places_of(folder, "cifar100", "cifar100"), split) if folder is not None else []
    if files:
        return read_parquet(files, "cifar100", split, shape=SHAPE, num_classes=100, class_names=CIFAR100_NAMES)
    from torchvision.datasets import CIFAR100  # noqa: PLC0415 - slow to import

    return _from_torchvision(CIFAR100, "CIFAR-100", split, folder, download=download)


def _from_torchvision(kind: Any, title: str, split: str, folder: Path | None, *, download: bool) -> ImageSet:
    root = folder or DEFAULT_FOLDER
    try:
        found = kind(root, train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(f"{title} could not be fetched into {str(root)!r}: {error}") from error
        raise DataError(
            f"no {title} in {str(root)!r}: neither {split}-*.parquet (Hugging Face layout) nor {kind.base_folder}; "
            "name the folder with --data-dir or HYDRABENCH_DATA, or add --download"
        ) from error
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    name, classes = VARIANTS[title]
    return ImageSet(name, split, images, torch.tensor(found.targets), num_classes=classes)
