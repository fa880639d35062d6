"""Fingerprints of images, so that a run is never continued on other images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from hydrabench.data.encoded import EncodedImages
from hydrabench.data.images import ImageSource, batches, load_block
from hydrabench.data.training_images import TrainingImages

HASHED_TOGETHER = 500  # images


def identities(images: ImageSource, chosen: Sequence[int]) -> list[tuple[str, int]]:
    """Return the SHA-256 of the float32 pixels, as in records, and the label of each image at `chosen`, in order."""
    found: list[tuple[str, int]] = []
    for start in range(0, len(chosen), HASHED_TOGETHER):
        block = load_block(images, 0, tuple(chosen[start : start + HASHED_TOGETHER]))
        found += zip(block.shas, block.labels.tolist(), strict=True)
    return found


def source_fingerprint(images: ImageSource) -> str:
    """Hash a whole set of training images, in order: SHA-256 of its labels (int64) and pixels (uint8).

    Of encoded images, which would take hours to read, the file names stand for the pixels.
    """
    digest = hashlib.sha256(images.labels.cpu().numpy().astype("<i8").tobytes())
    if isinstance(images, EncodedImages):
        for position in images.positions.tolist():
            digest.update(Path(images.encoded.name(position)).name.encode() + b"\n")
        return digest.hexdigest()
    for part in batches(len(images), HASHED_TOGETHER):
        digest.update(images.take(part).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def training_fingerprint(images: TrainingImages) -> str:
    """Hash the images that a phase trains on, pseudo-labelled ones included, and those held out, each set in order."""
    sets = (images.labelled, images.validation, images.pseudo)
    found = [source_fingerprint(one) if one is not None else "none" for one in sets]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()
