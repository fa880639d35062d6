"""The choice of test images: the first ones, every K-th, or those of a published list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hydrabench.documents import read_text
from hydrabench.errors import ConfigError, DataError, shortened

if TYPE_CHECKING:
    from hydrabench.data.images import ImageSource


LIST_BYTES = 1 << 26  # of a file of --ids
PICKED = "--index names the images one by one; leave -n, --skip and --ids out"
_SUFFIX = re.compile(r"_n\d{8}(?=\.\w+$)")  # the hub puts the class into ImageNet's file names


@dataclass(frozen=True)
class Choice:
    """The user's choice of test images.

    n: only so many of those that the others leave, from the first on; None: all. step: every step-th image, from 0 on.
    ids: a file with one image a line, by position in the split or by file name; None: no list.
    """

    n: int | None = None
    step: int = 1
    ids: Path | None = None


class Counted(Protocol):
    """Images of which is known how many there are. An `ImageSource` is one."""

    @property
    def name(self) -> str:
        """The key of `DATASETS`."""

    @property
    def split(self) -> str:
        """The part of the data set that this is."""

    def __len__(self) -> int: ...


def choose(images: Counted, choice: Choice) -> tuple[int, ...]:
    """Return the indices of the chosen images, in ascending order.

    Of a list, `n` takes the first lines. Every 20th image is what Cohen's certify.py takes with --skip 20: its 500
    images of CIFAR-10.
    Raises: ConfigError or DataError if there are not so many images, or a line names none.
    """
    if choice.ids is not None and choice.step != 1:
        raise ConfigError(f"--ids names the images and --skip {choice.step} skips some; give one of the two")
    if not 1 <= choice.step <= len(images):
        raise DataError(f"--skip {choice.step} is outside 1..{len(images)}, {_of(images)}")
    if choice.ids is not None:
        found: Sequence[int] = _listed(images, choice.ids)
        which = f"the images that {choice.ids} names"
    else:
        found = range(0, len(images), choice.step)
        which = _of(images) if choice.step == 1 else f"1 in {choice.step} of {_of(images)}"
    if choice.n is not None and not 1 <= choice.n <= len(found):
        raise DataError(f"-n {choice.n} is outside 1..{len(found)}, {which}")
    return tuple(sorted(found[: choice.n]))


def require_indices(images: Counted, indices: Sequence[int]) -> None:
    """Raise DataError for a position that no image has."""
    strange = [index for index in indices if not 0 <= index < len(images)]
    if strange:
        raise DataError(f"--index {strange[0]} is outside 0..{len(images) - 1}, {_of(images)}")


def _of(images: Counted) -> str:
    return f"the {images.split} images of {images.name}"


def _listed(images: Counted, file: Path) -> list[int]:
    """Return the images listed in a file, in its order. Empty lines and those that begin with # are skipped."""
    lines = [line.strip() for line in read_text(file, LIST_BYTES).splitlines()]
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise DataError(f"{file} names no image; write one a line, a position or a file name")
    by_name: dict[str, int] | None = None
    found: dict[int, str] = {}
    for entry in entries:
        if entry.isascii() and entry.isdecimal():
            index = int(entry) if len(entry) < 10 else len(images)
            problem = f"is outside 0..{len(images) - 1}"
        else:
            by_name = _names(images) if by_name is None else by_name
            index = by_name.get(_plain(entry), -1)
            problem = "is the name of none" if by_name else "is no position, and these have no file names,"
        if not 0 <= index < len(images):
            raise DataError(f"{file}: {shortened(entry)} {problem} of {_of(images)}")
        if index in found:
            raise DataError(f"{file}: {shortened(entry)} names an image twice, before as {shortened(found[index])}")
        found[index] = entry
    return list(found)


def _names(images: Counted) -> dict[str, int]:
    """Positions by file name. Raises: DataError if two images have one name."""
    from hydrabench.data.encoded import EncodedImages

    if not isinstance(images, EncodedImages):
        return {}
    names = [_plain(name) for name in images.file_names()]
    found = {name: index for index, name in enumerate(names) if name}
    if len(found) < sum(map(bool, names)):
        raise DataError(f"two of {_of(images)} have one file name; list positions instead")
    return found


def _plain(name: str) -> str:
    """A file name without its folders, and without the class that the hub adds: ILSVRC2012_val_00000293.JPEG."""
    return _SUFFIX.sub("", name.rsplit("/", 1)[-1])


def first_images(images: ImageSource, n: int | None) -> int:
    """Return how many of the first images to take: `n`, or all if None.

    Raises: DataError if there are fewer than `n`.
    """
    return len(choose(images, Choice(n)))
