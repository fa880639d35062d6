"""Images of the user's own: folders of class folders, files of numpy's, Parquet files of the Hugging Face layout.

Each is one split, called as it is used: "train" or "test".
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from hydrabench.data.corrupted import load_place
from hydrabench.data.decoding import open_rgb
from hydrabench.data.encoded import Encoded, EncodedImages, Files, ParquetRows
from hydrabench.data.forms import OWN_FORMS
from hydrabench.data.hub_images import load_hub
from hydrabench.data.images import ImageSet, check_labels
from hydrabench.data.labels import feature_names, plain_class
from hydrabench.data.parquet import LABEL_COLUMNS, column_names, read_column, read_parquet
from hydrabench.errors import DataError
from hydrabench.files import close_name

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
LOOKED_AT = 100  # images whose sizes decide whether all are taken as they are
MOST_IN_MEMORY = 4 << 30  # bytes of pixels
OwnImages: TypeAlias = ImageSet | EncodedImages


def load_own(name: str, split: str) -> OwnImages:
    """Load FORM:PATH, where FORM is a key of `OWN`, as the images called `split`.

    Images of one size are taken as they are. If their sizes differ, each is resized and cut to 224 x 224, as ImageNet's
    are (see `EncodedImages.take`).
    Raises: DataError in one line if nothing is there, or it cannot be read as labelled images.
    """
    form, _, place = name.partition(":")
    path = Path(place)
    if form not in INSIDE and not path.exists():
        raise DataError(f"{name}: there is no {place or 'path'}; give {OWN_FORMS}{close_name(Path(place))}")
    images = OWN[form](path, name, split)
    check_labels(images, name)
    return images


def _from_folder(root: Path, name: str, split: str) -> OwnImages:
    """One folder per class, labels in the order of the sorted folder names, as torchvision's ImageFolder has them.

    The images are in the order of the SHA-256 of their paths, so that any prefix is a fair sample.
    """
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) if root.is_dir() else []
    found = [
        (f"{group}/{file.relative_to(root / group).as_posix()}", label)
        for label, group in enumerate(classes)
        for file in sorted((root / group).rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise DataError(f"{name}: {root} holds no folder per class with images ({', '.join(IMAGE_SUFFIXES)})")
    found.sort(key=lambda one: (hashlib.sha256(os.fsencode(one[0])).digest(), one[0]))
    files = Files(root, [file for file, _ in found])
    labels = torch.tensor([label for _, label in found])
    encoded = EncodedImages(name, split, files, torch.arange(len(labels)), labels, len(classes), names=tuple(classes))
    size = _common_size(files, range(len(labels)))
    return encoded if size is None else _decoded(encoded, size)


def _common_size(encoded: Encoded, positions: Sequence[int]) -> tuple[int, int] | None:
    """Height and width of the first images; None if they differ."""
    sizes = set()
    for position in positions[:LOOKED_AT]:
        try:
            image = open_rgb(encoded.read(position))
        except (OSError, ValueError) as error:
            raise DataError(f"{encoded.name(position)} cannot be read as an image: {error}") from error
        sizes.add((image.height, image.width))
    return sizes.pop() if len(sizes) == 1 else None


def _decoded(images: EncodedImages, size: tuple[int, int]) -> OwnImages:
    """All of them in memory, as they are; encoded as before if one has another size."""
    count = len(images)
    if count * 3 * size[0] * size[1] > MOST_IN_MEMORY:
        raise DataError(
            f"{images.name} holds {count} images of {size[0]} x {size[1]}, more than {MOST_IN_MEMORY >> 30} GiB of "
            "pixels; give a folder of fewer"
        )
    pixels = np.empty((count, 3, *size), np.uint8)
    for row in range(count):
        try:
            image = open_rgb(images.encoded.read(row))
        except (OSError, ValueError) as error:
            raise DataError(f"{images.encoded.name(row)} cannot be read as an image: {error}") from error
        if (image.height, image.width) != size:
            return images
        pixels[row] = np.asarray(image).transpose(2, 0, 1)
    return ImageSet(
        images.name, images.split, torch.from_numpy(pixels), images.labels, images.num_classes, names=images.names
    )


def _from_npz(path: Path, name: str, split: str) -> OwnImages:
    """`images` uint8, or float in [0, 1], NHWC, NCHW or (N, H, W); `labels` integers; perhaps `class_names`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("images", "labels", "class_names") if key in file.files}
            held = ", ".join(file.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{name} is no file of numpy.savez without objects: {error}") from error
    if not {"images", "labels"} <= set(arrays):
        raise DataError(f"{name} holds {held or 'nothing'}; it needs the arrays images and labels")
    images, labels = arrays["images"], arrays["labels"]
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(f"{name}: labels should be {images.shape[:1]} integers, found {labels.dtype} {labels.shape}")
    names = tuple(map(str, arrays.get("class_names", np.array([])).tolist()))
    classes = len(names) or (int(labels.max()) + 1 if len(labels) else 0)
    pixels = torch.from_numpy(np.ascontiguousarray(_channels_first(images, name)))
    return ImageSet(
        name, split, _in_range(pixels, name), torch.from_numpy(labels.astype(np.int64)), classes, names=names
    )


def _channels_first(images: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4 or images.shape[1] == images.shape[3]:
        raise DataError(
            f"{name}: images should be NHWC, NCHW or (N, H, W), found the shape {images.shape}, which "
            "does not tell its channels"
        )
    return images if images.shape[1] < images.shape[3] else images.transpose(0, 3, 1, 2)


def _in_range(images: torch.Tensor, name: str) -> torch.Tensor:
    """uint8 as it is, floats as float32. Raises: DataError if floats lie outside [0, 1]."""
    if images.dtype == torch.uint8:
        return images
    if not images.dtype.is_floating_point:
        raise DataError(f"{name}: images should be uint8, or float in [0, 1], found {images.dtype}")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        remedy = "divide by 255" if images.max() > 2 and images.min() >= 0 else "undo the normalisation"
        raise DataError(
            f"{name}: images lie in [{images.min():.4g}, {images.max():.4g}], not in [0, 1]; {remedy} in the "
            "file, and let --normalization do it in front of the network"
        )
    return images.float()


def _from_parquet(path: Path, name: str, split: str) -> OwnImages:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{name}: {path} holds no *.parquet")
    names = _class_names(files[0])
    labels = np.concatenate([read_column(file, LABEL_COLUMNS) for file in files])
    classes = len(names) or (int(labels.max()) + 1 if len(labels) else 0)
    rows = ParquetRows(files)
    size = _common_size(rows, range(len(labels)))
    if size is None:
        positions = torch.arange(len(labels))
        return EncodedImages(name, split, rows, positions, torch.from_numpy(labels), classes, names=names)
    known = tuple(map(plain_class, names))
    images = read_parquet(files, name, split, shape=(3, *size), num_classes=classes, class_names=known)
    return ImageSet(name, split, images.images, torch.from_numpy(labels), classes, names=names)


def _class_names(file: Path) -> tuple[str, ...]:
    import pyarrow.parquet as pq  # noqa: PLC0415

    column = next((label for label in LABEL_COLUMNS if label in column_names(file)), LABEL_COLUMNS[0])
    return tuple(feature_names(pq.read_schema(file).metadata, column, file) or ())


# by the first word of `forms.OWN_FORMS`
OWN: dict[str, Callable[[Path, str, str], OwnImages]] = {
    "folder": _from_folder,
    "npz": _from_npz,
    "parquet": _from_parquet,
    "cifar10c": load_place,
    "hf": load_hub,
}
INSIDE = ("cifar10c", "hf")  # whose places are no paths
