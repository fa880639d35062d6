"""Decoded images, kept in the user's cache: decoding the 50,000 of CIFAR-10 takes longer than the first epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hydrabench.errors import ConfigError
from hydrabench.files import cache_folder, replacing, sha256_of

VERSION = "hydrabench.pixels/2"
DIGEST_BYTES = 32
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def cached_pixels(files: Sequence[Path], shape: tuple[int, ...], decode: Callable[[], Pixels]) -> Pixels:
    """Return the images that `files` hold, from the cache if they were decoded before.

    They are found by the bytes of the files and the version of the decoder, so another file under the same name,
    of the same size and age, is decoded anew; and by their own hash, so a damaged cache is, too. A cache that
    cannot be written, or has no home folder, is done without.

    Args:
        files: what is decoded, in order.
        shape: of the result, (N, C, H, W).
        decode: does the work; its result has `shape`.
    """
    try:
        path = cache_folder() / "images" / f"{_key(files, shape)}.pixels"
    except ConfigError:  # there is no home folder
        return decode()
    with suppress(OSError, ValueError):
        return _read(path, shape)
    images = decode()
    with suppress(OSError), replacing(path) as scratch, scratch.open("wb") as file:
        images.tofile(file)
        file.write(hashlib.sha256(images.data).digest())
    return images


def _key(files: Sequence[Path], shape: tuple[int, ...]) -> str:
    from PIL import __version__ as decoder  # noqa: PLC0415 - comes with torchvision

    parts = [VERSION, decoder, str(shape), *map(sha256_of, files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(path: Path, shape: tuple[int, ...]) -> Pixels:
    """Raises: OSError or ValueError if the file is not there or not whole."""
    if path.stat().st_size != prod(shape) + DIGEST_BYTES:
        raise ValueError(f"{path} has the wrong size")
    raw = np.fromfile(path, np.uint8)
    images, digest = raw[:-DIGEST_BYTES], raw[-DIGEST_BYTES:]
    if hashlib.sha256(images.data).digest() != digest.tobytes():
        raise ValueError(f"{path} is damaged")
    return images.reshape(shape)
