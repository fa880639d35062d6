"""Images that a caller hands over, as tensors, arrays or a data set of torch: checked once and kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hydrabench.data.forms import GIVEN
from hydrabench.data.images import ImageSet
from hydrabench.errors import DataError, shortened

_FORMS = "give a registered name, a pair (images, labels), or a torch.utils.data.Dataset with a length"


def given_images(data: Any, n: int | None = None) -> ImageSet:
    """Return images that are not a registered data set, in memory, in the order in which they are given.

    The name of the set is made of a hash of its first image, so that a longer part of the same images has the same.

    Args:
        data: (images, labels), tensors or arrays: images (N, C, H, W), uint8 in 0..255 or floats in [0, 1]; labels
            (N,), whole numbers. Or a data set of torch with a length, whose items are an image, (C, H, W) as above
            or one of Pillow's, and its label.
        n: read only so many of a data set, >= 1; None: all. Pairs are kept whole.
    Returns: a set whose labels lie in 0..num_classes - 1.
    Raises: DataError naming what was given and what is allowed.
    """
    images, labels = _pair(data) if isinstance(data, tuple | list) else _items(data, n)
    images, labels = _checked_images(images), _checked_labels(labels, len(images))
    first = images[:1].contiguous().numpy().tobytes() + str((images.dtype, tuple(images.shape[1:]))).encode()
    name = f"{GIVEN}{hashlib.sha256(first + str(int(labels[0])).encode()).hexdigest()[:8]}"
    return ImageSet(name, "test", images, labels, num_classes=int(labels.max()) + 1)


def _line(value: object) -> str:
    return " ".join(shortened(value).split())


def _pair(data: Any) -> tuple[Tensor, Tensor]:
    if len(data) != 2:
        raise DataError(f"data is a {type(data).__name__} of {len(data)} parts; {_FORMS}")
    return _tensor(data[0], "images"), _tensor(data[1], "labels")


def _tensor(value: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{what} are a {type(value).__name__} that is no tensor or array ({error}); {_FORMS}"
        ) from error


def _items(data: Any, n: int | None) -> tuple[Tensor, Tensor]:
    """The images and labels of the first `n` items of a data set."""
    if isinstance(data, Tensor | np.ndarray):
        raise DataError(f"data has the shape {tuple(data.shape)} and no labels; {_FORMS}")
    inner = f"; of a DataLoader, give its `dataset`: {type(data).__name__}" if hasattr(data, "dataset") else ""
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or (inner and hasattr(data, "batch_size")):
        raise DataError(f"data is {_line(data)}; {_FORMS}{inner}")
    if n is not None and not 1 <= n <= len(data):
        raise DataError(f"n {n} is outside 1..{len(data)}, the items of the data set")
    images, labels = [], []
    for number, (image, label) in enumerate(islice(_pairs_of(data), n)):
        images.append(_image(image))
        labels.append(_label(label, number))
        if images[-1].shape != images[0].shape or images[-1].dtype != images[0].dtype:
            raise DataError(
                f"item {number} has an image of shape {tuple(images[-1].shape)} and type {images[-1].dtype}, item 0 "
                f"one of {tuple(images[0].shape)} and {images[0].dtype}; give all images one size and type"
            )
    if not images:
        raise DataError("the data set has no items; give at least one image")
    return torch.stack(images), torch.tensor(labels)


def _pairs_of(data: Any) -> Iterator[tuple[Any, Any]]:
    for number in range(len(data)):
        item = data[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"item {number} of the data set is {_line(item)}; items are an image and its label")
        yield item[0], item[1]


def _image(image: Any) -> Tensor:
    """One image as (C, H, W). Pillow's, which have a mode, are (H, W, C) or (H, W)."""
    if not hasattr(image, "getbands"):
        return _tensor(image, "images")
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _label(label: Any, number: int) -> int:
    whole = torch.as_tensor(label)
    if whole.numel() != 1 or whole.is_floating_point() or whole.dtype == torch.bool:
        raise DataError(f"item {number} has the label {_line(label)}; labels are whole numbers from 0 on")
    return int(whole)


def _checked_images(images: Tensor) -> Tensor:
    """Images as uint8 or float32 in [0, 1]. Raises: DataError."""
    shape = tuple(images.shape)
    if len(shape) != 4 or 0 in shape:
        raise DataError(f"images have shape {shape}; allowed is (N, C, H, W) with no side 0")
    if shape[3] in (1, 3) and shape[1] not in (1, 3):
        raise DataError(f"images have shape {shape}; allowed is (N, C, H, W): give images.permute(0, 3, 1, 2)")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"images have type {images.dtype}; allowed are uint8 in 0..255 and floats in [0, 1]")
    images = images.to(torch.float32)
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # so that NaN is refused, too
        grey = low >= 0 and 1 < high <= 255
        hint = "give images / 255" if grey else "if they are normalised, let the network do that and give the pixels"
        raise DataError(f"images lie in [{low:.4g}, {high:.4g}]; allowed is [0, 1]: {hint}")
    return images


def _checked_labels(labels: Tensor, count: int) -> Tensor:
    if labels.shape != (count,):
        raise DataError(f"labels have shape {tuple(labels.shape)}; allowed is ({count},), one for each image")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"labels have type {labels.dtype}; allowed are whole numbers from 0 on")
    labels = labels.to(torch.int64)
    if int(labels.min()) < 0:
        raise DataError(f"labels lie in {int(labels.min())}..{int(labels.max())}; allowed are whole numbers from 0 on")
    return labels
