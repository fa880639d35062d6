"""Data sets: uint8 images, in memory or decoded when asked for; blocks for evaluation, minibatches for training.

The names below `TYPE_CHECKING` need torch, which takes seconds to import; they are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hydrabench.data.registry import DATASETS, DataSet, load_images

if TYPE_CHECKING:
    from hydrabench.data.choosing import Choice, choose, first_images
    from hydrabench.data.given import given_images
    from hydrabench.data.images import (
        Block,
        ImageSet,
        ImageSource,
        batches,
        block_indices,
        load_block,
        pixels,
        validation_split,
    )
    from hydrabench.data.loaders import TrainingBatches
    from hydrabench.data.training_images import TrainingImages, load_test_images, load_training_images

__all__ = [
    "DATASETS",
    "Block",
    "Choice",
    "DataSet",
    "ImageSet",
    "ImageSource",
    "TrainingBatches",
    "TrainingImages",
    "batches",
    "block_indices",
    "choose",
    "first_images",
    "given_images",
    "load_block",
    "load_images",
    "load_test_images",
    "load_training_images",
    "pixels",
    "validation_split",
]

_LATER = {
    "choosing": ("Choice", "choose", "first_images"),
    "given": ("given_images",),
    "images": (
        "Block",
        "ImageSet",
        "ImageSource",
        "batches",
        "block_indices",
        "load_block",
        "pixels",
        "validation_split",
    ),
    "loaders": ("TrainingBatches",),
    "training_images": ("TrainingImages", "load_test_images", "load_training_images"),
}


def __getattr__(name: str) -> Any:
    """Import a name of `_LATER`."""
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
