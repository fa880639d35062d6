"""ImageNet-1k, from an image folder, or its validation images from Parquet files in the Hugging Face layout."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from hydrabench.data.encoded import Encoded, EncodedImages, Files, ParquetRows
from hydrabench.data.labels import WORDNET_ID
from hydrabench.data.parquet import find_parquet, places_of, read_labels
from hydrabench.errors import DataError

CLASSES = 1000
FOLDERS = {"train": "train", "test": "val"}
SHUFFLED = "test-shuffled"  # the split of validation images from class folders, in ledgers and reports


def load_imagenet(split: str, folder: Path | None, *, download: bool = False) -> EncodedImages:  # noqa: ARG001
    """Return ImageNet's "train" images, or its validation images as "test", to be decoded when they are taken.

    Looked for, in this order: for "test", `folder/imagenet/validation-*.parquet`, the same in `imagenet/data` (as on
    the hub) or in `folder` itself if that is called imagenet; then `train` and `val`, with one folder for each class
    named by its WordNet id, in `folder/imagenet` or `folder`. Labels are the positions of the sorted WordNet ids.
    Validation images from class folders are in the order of the SHA-256 of their file names, because in that of the
    folders the first 50 images are one class; any prefix is a fair sample. Their split is called "test-shuffled", so
    that no ledger of it is compared image by image with one of another order. Rows of Parquet files keep their order,
    which is that of the original: random. `download` is not used: ImageNet asks for an agreement.
    Raises: DataError if none of them is there, or class folders are missing, since then labels would be others.
    Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, arXiv:1409.0575.
    """
    root = folder or Path("data")
    files = find_parquet(places_of(root, "imagenet", "data"), "validation") if split == "test" else []
    if files:
        labels = np.concatenate([read_labels(file, ()) for file in files])
        return _images(split, ParquetRows(files), labels.tolist())
    for place in (root / "imagenet" / FOLDERS[split], root / FOLDERS[split]):
        if place.is_dir():
            return _from_folder(place, split)
    parquet = "validation-*.parquet (Hugging Face layout) nor " if split == "test" else ""
    raise DataError(
        f"no ImageNet {split} images in {str(root)!r}: {'neither ' if parquet else 'there is no '}{parquet}"
        f"imagenet/{FOLDERS[split]} with a folder for each class; get them from image-net.org and name the folder "
        "with --data-dir or HYDRABENCH_DATA"
    )


def _from_folder(root: Path, split: str) -> EncodedImages:
    from torchvision.datasets import ImageFolder  # noqa: PLC0415 - slow to import

    _check_classes(root)
    try:
        samples = ImageFolder(str(root)).samples
    except OSError as error:
        raise DataError(f"{root} is not a folder of ImageNet images: {error}") from error
    names = [os.path.relpath(path, root) for path, _ in samples]
    images = _images(split, Files(root, names), [label for _, label in samples])
    if split == "train":
        return images
    keys = [hashlib.sha256(os.fsencode(Path(name).name)).digest() for name in names]
    order = sorted(range(len(names)), key=lambda position: (keys[position], names[position]))
    return images.subset(torch.tensor(order), SHUFFLED)


def _check_classes(root: Path) -> None:
    """Labels are positions among all 1,000 classes: without some of them, all labels after them would be wrong."""
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    others = [name for name in found if not WORDNET_ID.fullmatch(name)]
    if others:
        raise DataError(
            f"{root} holds the folder {others[0]!r}; ImageNet's class folders are called by WordNet ids like n01440764"
        )
    if len(found) != CLASSES:
        raise DataError(
            f"{root} holds {len(found)} class folders of ImageNet's {CLASSES}; labels are positions among all of them, "
            "so they would be others: complete the folders, or give Parquet files, which hold labels of their own"
        )


def _images(split: str, encoded: Encoded, labels: list[int]) -> EncodedImages:
    return EncodedImages("imagenet", split, encoded, torch.arange(len(labels)), torch.tensor(labels), CLASSES)
