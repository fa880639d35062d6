"""The interface of image sources, image sets in memory, and the fixed blocks of evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from hydrabench.errors import DataError


class ImageSource(Protocol):
    """One split of a data set, in memory or decoded when asked for; `labels` int64 (N,)."""

    @property
    def name(self) -> str:
        """The key of `DATASETS`."""

    @property
    def split(self) -> str:
        """The part of the data set that this is."""

    @property
    def num_classes(self) -> int:
        """Labels lie in 0..num_classes - 1."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""

    @property
    def labels(self) -> Tensor:
        """One label for each image, on the device of the set."""

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Tensor:
        """Return the images at `indices`, (B, C, H, W), as they are evaluated, on the device of the set.

        They are uint8, or float32 in [0, 1].
        """

    def subset(self, indices: Tensor, split: str) -> ImageSource:
        """Return the images at `indices` as a set of its own, called `split`."""

    def to(self, device: torch.device) -> ImageSource:
        """Return the same set, whose images and labels come on `device`."""


@dataclass(frozen=True)
class ImageSet:
    """An image source in memory: `images` uint8, or float32 in [0, 1], (N, C, H, W); `labels` int64 (N,).

    groups: int64 (N,), equal for images that a validation split must not separate; None if all are independent.
    names: of the classes, by label, where the files of a user's own say them.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    num_classes: int
    groups: Tensor | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, indices: Tensor) -> Tensor:
        """Return the images at `indices`, (B, C, H, W)."""
        return self.images[indices.to(self.images.device)]

    def subset(self, indices: Tensor, split: str) -> ImageSet:
        """Return the images at `indices` as a set of its own, called `split`."""
        groups = None if self.groups is None else self.groups[indices]
        return replace(self, split=split, images=self.images[indices], labels=self.labels[indices], groups=groups)

    def to(self, device: torch.device) -> ImageSet:
        """Return the same set on `device`, in the same type."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Block:
    """Consecutive images that are evaluated together.

    number: position of the block in the split. indices: data-set indices. images: (B, C, H, W), float,
    in [0, 1]. labels: (B,), int64. shas: SHA-256 of each image's float32 pixels, row-major CHW.
    """

    number: int
    indices: tuple[int, ...]
    images: Tensor
    labels: Tensor
    shas: tuple[str, ...]

    def rows(self, rows: Sequence[int]) -> Block:
        """Return the same block with some of its images only."""
        if list(rows) == list(range(len(self.indices))):
            return self
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.images.device)
        indices, shas = tuple(self.indices[row] for row in rows), tuple(self.shas[row] for row in rows)
        return Block(self.number, indices, self.images[chosen], self.labels[chosen], shas)


def pixels(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn uint8 images into floats in [0, 1], the float32 quotient by 255 in every precision; floats stay."""
    return images.to(dtype) if images.is_floating_point() else (images.to(torch.float32) / 255).to(dtype)


def check_labels(images: ImageSource, title: str) -> None:
    """Raises: DataError if there are no images, or a label is not one of the classes."""
    if len(images) == 0:
        raise DataError(f"{title}: the {images.split} files hold no images")
    lowest, highest = int(images.labels.min()), int(images.labels.max())
    if lowest < 0 or highest >= images.num_classes:
        raise DataError(f"{title}: labels should lie in 0..{images.num_classes - 1}, found {lowest}..{highest}")


def block_indices(n: int, size: int) -> list[tuple[int, ...]]:
    """Cut the first `n` indices of a split into blocks at multiples of `size`."""
    return [tuple(range(start, min(start + size, n))) for start in range(0, n, size)]


def load_block(images: ImageSource, number: int, indices: tuple[int, ...]) -> Block:
    """Return the images at `indices` as float32 in [0, 1] on the CPU, with their hashes."""
    chosen = torch.tensor(indices)
    floats = pixels(images.take(chosen))
    shas = tuple(hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in floats)
    return Block(number, indices, floats, images.labels[chosen], shas)


def validation_split(images: ImageSource, fraction: float) -> tuple[ImageSource, ImageSource]:
    """Hold out a fixed pseudo-random `fraction` of a training set, the same for every seed.

    Images of one group stay on one side, so of a set with groups a few more may be held out.
    Returns: what is left to train on, and the held-out images (split "validation").
    Raises: DataError if either part would be empty.
    """
    held_out = round(len(images) * fraction)
    groups = images.groups if isinstance(images, ImageSet) else None
    generator = torch.Generator().manual_seed(0)
    if groups is None:
        order = torch.randperm(len(images), generator=generator)
    else:
        order, ends = _order_by_group(groups, generator)
        held_out = next((end for end in ends if end >= held_out > 0), 0)
    if not 0 < held_out < len(images):
        raise DataError(f"validation_fraction {fraction} of {len(images)} images leaves a part empty")
    train, validation = order[held_out:].sort().values, order[:held_out].sort().values
    return images.subset(train, "train"), images.subset(validation, "validation")


def _order_by_group(groups: Tensor, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """Indices of all images, group after group in random order, and how many have been seen at each group's end."""
    names, numbers = torch.unique(groups, return_inverse=True)
    rank = torch.randperm(len(names), generator=generator)[numbers]
    return rank.argsort(stable=True), rank.bincount().cumsum(0).tolist()


def batches(count: int, batch_size: int, order: Tensor | None = None) -> Iterator[Tensor]:
    """Yield index tensors that cover `range(count)`, in `order` if given; the last may be shorter."""
    yield from torch.split(torch.arange(count) if order is None else order, batch_size)
