"""MNIST and Fashion-MNIST, from the files of their authors as torchvision keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hydrabench.data.images import ImageSet
from hydrabench.errors import DataError


def load_mnist(split: str, folder: Path | None, *, download: bool = False) -> ImageSet:
    """Return MNIST's "train" (60,000) or "test" (10,000) images, in the order of their files.

    Looked for: torchvision's `folder/MNIST/raw`, which `download` fetches.
    Raises: DataError that says how to get the data if it is not there, or is damaged.
    Source: LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """
    from torchvision.datasets import MNIST  # noqa: PLC0415 - slow to import

    return _from_torchvision(MNIST, "mnist", split, folder or Path("data"), download=download)


def load_fashion_mnist(split: str, folder: Path | None, *, download: bool = False) -> ImageSet:
    """Return Fashion-MNIST's "train" (60,000) or "test" (10,000) images, in the order of their files.

    Looked for: torchvision's `folder/FashionMNIST/raw`, which `download` fetches.
    Raises: as `load_mnist`.
    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv:1708.07747.
    """
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415 - slow to import

    return _from_torchvision(FashionMNIST, "fashionmnist", split, folder or Path("data"), download=download)


def _from_torchvision(kind: Any, name: str, split: str, root: Path, *, download: bool) -> ImageSet:
    title, place = kind.__name__, root / kind.__name__ / "raw"
    try:
        found = kind(root, train=split == "train", download=download)
    except (RuntimeError, OSError, AssertionError, TypeError, ValueError, LookupError) as error:
        if download:
            raise DataError(f"{title} could not be fetched into {str(root)!r}: {error}") from error
        why = "holds no" if "not found" in str(error) else "holds damaged"
        raise DataError(
            f"{str(place)!r} {why} files of {title} ({split} images and labels, as torchvision keeps them); name the "
            "folder above with --data-dir or HYDRABENCH_DATA, or add --download"
        ) from error
    images, labels = found.data, found.targets.to(torch.int64)
    if images.dim() != 3 or len(images) != len(labels):
        raise DataError(
            f"{str(place)!r} holds {tuple(images.shape)} pixels and {len(labels)} labels; fetch {title} again"
        )
    return ImageSet(name, split, images.unsqueeze(1).contiguous(), labels, num_classes=10)
