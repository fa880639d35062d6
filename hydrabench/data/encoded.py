"""Image sources too large for memory: encoded files, decoded and cut to 224 x 224 when asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import log, sqrt
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hydrabench.data.decoding import open_rgb
from hydrabench.data.parquet import read_encoded, read_paths
from hydrabench.errors import DataError

CPU = torch.device("cpu")
RESIZED, SIDE = 256, 224
AREA, ASPECT, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of random crops: part of the image's area, width by height


class Encoded(Protocol):
    """Encoded images by position."""

    def read(self, position: int) -> bytes:
        """Return one image as it is stored."""

    def name(self, position: int) -> str:
        """Say where it is stored, for messages."""

    def file_names(self) -> list[str]:
        """The file name of every image, "" where that is not known."""


class Files:
    """One image per file, under one folder. Names are kept as one array: there are 1.28 million."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = np.array([os.fsencode(name) for name in names])

    def file_names(self) -> list[str]:
        """Paths below the folder."""
        return [os.fsdecode(name) for name in self.names.tolist()]

    def read(self, position: int) -> bytes:
        """Return one file."""
        return Path(self.name(position)).read_bytes()

    def name(self, position: int) -> str:
        """The path of one file."""
        return str(self.root / os.fsdecode(self.names[position].item()))


class ParquetRows:
    """Rows of Parquet files, read a row group at a time: fast in order, slow at random."""

    def __init__(self, files: Sequence[Path]) -> None:
        import pyarrow.parquet as pq  # noqa: PLC0415 - needed for this layout only

        self.groups: list[tuple[Path, int]] = []
        self.starts = [0]
        for file in files:
            metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                self.groups.append((file, group))
                self.starts.append(self.starts[-1] + metadata.row_group(group).num_rows)
        self.lock = Lock()
        self.kept = -1  # the row group in `rows`
        self.rows: list[bytes | None] = []

    def read(self, position: int) -> bytes:
        """Return the bytes of one row, none of them if the row has no image."""
        group = self._group(position)
        with self.lock:
            if group != self.kept:
                file, number = self.groups[group]
                self.rows = [data for part in read_encoded(file, [number]) for data in part]
                self.kept = group
            return self.rows[position - self.starts[group]] or b""

    def file_names(self) -> list[str]:
        """Return the file names that the rows hold."""
        return [name for file in dict.fromkeys(file for file, _ in self.groups) for name in read_paths(file)]

    def name(self, position: int) -> str:
        """The file of one row, and which row of its group it is."""
        group = self._group(position)
        file, number = self.groups[group]
        return f"{file}, row {position - self.starts[group]} of row group {number}"

    def _group(self, position: int) -> int:
        return int(np.searchsorted(self.starts, position, side="right")) - 1


@dataclass(frozen=True)
class EncodedImages:
    """An image source that decodes: `encoded` at `positions` (N,), of any size; `labels` int64 (N,).

    names: as of `ImageSet`.
    """

    name: str
    split: str
    encoded: Encoded
    positions: Tensor
    labels: Tensor
    num_classes: int
    device: torch.device = CPU
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image as it is taken."""
        return 3, SIDE, SIDE

    def take(self, indices: Tensor) -> Tensor:
        """Return the images at `indices`, uint8 (B, 3, 224, 224): shorter side 256, the centre cut out.

        Raises: DataError naming an image that cannot be decoded.
        Source: the evaluation of He et al., arXiv:1512.03385, as torchvision's Resize(256) and CenterCrop(224).
        """
        with ThreadPoolExecutor() as pool:
            views = list(pool.map(self._centre, self.positions[indices.cpu()].tolist()))
        return torch.stack(views).to(self.device) if views else torch.empty((0, *self.shape), dtype=torch.uint8)

    def random_view(self, index: int, *, flip: bool, generator: torch.Generator) -> Tensor:
        """Return a random part of one image, resized and perhaps mirrored: uint8 (3, 224, 224), on the CPU.

        Args:
            index: position in this set. flip: mirror it with probability 1/2.
            generator: gives all random numbers.
        Raises: DataError naming an image that cannot be decoded.
        Source: Szegedy et al., arXiv:1409.4842, section 6, as torchvision's RandomResizedCrop(224).
        """
        from torchvision.transforms import functional  # noqa: PLC0415 - slow to import

        image = self._open(int(self.positions[index]))
        top, left, height, width = random_window(image.height, image.width, generator)
        view = functional.resized_crop(image, top, left, height, width, [SIDE, SIDE])
        pixels: Tensor = functional.pil_to_tensor(view)
        return pixels.flip(2) if flip and torch.rand(1, generator=generator).item() < 0.5 else pixels

    def file_names(self) -> list[str]:
        """The file name of every image, "" where that is not known."""
        names = self.encoded.file_names()
        return [names[position] for position in self.positions.tolist()]

    def subset(self, indices: Tensor, split: str) -> EncodedImages:
        """Return the images at `indices` as a set of its own, called `split`."""
        labels = self.labels[indices.to(self.labels.device)]
        return replace(self, split=split, positions=self.positions[indices.cpu()], labels=labels)

    def to(self, device: torch.device) -> EncodedImages:
        """Return the same set, whose images and labels come on `device`."""
        return replace(self, labels=self.labels.to(device), device=device)

    def _centre(self, position: int) -> Tensor:
        from torchvision.transforms import functional  # noqa: PLC0415

        resized = functional.resize(self._open(position), RESIZED)
        pixels: Tensor = functional.pil_to_tensor(functional.center_crop(resized, SIDE))
        return pixels

    def _open(self, position: int) -> Any:
        try:
            return open_rgb(self.encoded.read(position))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.encoded.name(position)} cannot be read as an image: {error}") from error


def random_window(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random part of an image.

    Its area is uniform in `AREA` and the logarithm of its aspect ratio in that of `ASPECT`; if no such part fits
    in `TRIES` tries, it is the largest part around the centre whose aspect ratio is allowed.
    """
    for _ in range(TRIES):
        area = height * width * torch.empty(1).uniform_(*AREA, generator=generator).item()
        logarithm = torch.empty(1).uniform_(log(ASPECT[0]), log(ASPECT[1]), generator=generator)
        aspect = torch.exp(logarithm).item()
        wide, high = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            top = torch.randint(0, height - high + 1, (1,), generator=generator).item()
            left = torch.randint(0, width - wide + 1, (1,), generator=generator).item()
            return int(top), int(left), high, wide
    aspect = min(max(width / height, ASPECT[0]), ASPECT[1])
    high, wide = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - high) // 2, (width - wide) // 2, high, wide
