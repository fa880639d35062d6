"""Data sets: uint8 images, in memory or decoded when asked for; blocks for evaluation, minibatches for training."""

from hydrabench.data.augment import augment
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
from hydrabench.data.registry import DATASETS, DataSet, load_images
from hydrabench.data.training_images import TrainingImages, load_training_images

__all__ = [
    "DATASETS",
    "Block",
    "Choice",
    "DataSet",
    "ImageSet",
    "ImageSource",
    "TrainingBatches",
    "TrainingImages",
    "augment",
    "batches",
    "block_indices",
    "choose",
    "first_images",
    "given_images",
    "load_block",
    "load_images",
    "load_training_images",
    "pixels",
    "validation_split",
]
