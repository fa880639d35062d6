"""The images of a training phase: labelled, pseudo-labelled and held-out ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hydrabench.config import DataRecipe
from hydrabench.data.forms import is_own
from hydrabench.data.images import ImageSource, validation_split
from hydrabench.data.pseudo_labels import load_pseudo_labels
from hydrabench.data.registry import DATASETS, data_folder, load_images
from hydrabench.errors import DataError
from hydrabench.runtime import stream


@dataclass(frozen=True)
class TrainingImages:
    """The images of a phase: labelled ones, pseudo-labelled ones if the recipe has some, and those held out."""

    labelled: ImageSource
    pseudo: ImageSource | None
    validation: ImageSource

    def counts(self) -> dict[str, int]:
        """Return the number of images of each kind, as `run.json` says it."""
        pseudo = {"pseudo_labelled": len(self.pseudo)} if self.pseudo is not None else {}
        return {"train": len(self.labelled), "validation": len(self.validation), **pseudo}


def load_training_images(
    settings: DataRecipe,
    folder: Path | None = None,
    *,
    seed: int,
    download: bool = False,
    images: ImageSource | None = None,
) -> TrainingImages:
    """Load the images of a recipe's `data:` section.

    The validation split comes first and is the same for every `fraction` and seed; the fraction is drawn from what it
    leaves. Smaller fractions of one seed are parts of larger ones.

    Args:
        settings: which images. seed: of the recipe; the fraction depends on it.
        folder, download: as for `load_images`. A relative path of pseudo-labels begins there.
        images: the training images, if they were handed over; None: of the data set `settings.name`.
    Raises: as `load_images`; DataError if a part would be empty, or the pseudo-labelled images do not fit.
    """
    if images is None:
        images = load_images(settings.name, "train", folder, download=download)
    labelled, validation = validation_split(images, settings.validation_fraction)
    count = round(settings.fraction * len(labelled))
    if count == 0:
        raise DataError(f"data.fraction {settings.fraction} of {len(labelled)} training images leaves none")
    if count < len(labelled):
        order = torch.randperm(len(labelled), generator=stream(seed, "data fraction"))
        labelled = labelled.subset(order[:count].sort().values, "train")
    return TrainingImages(labelled, _pseudo_labelled(settings, folder, images), validation)


def _pseudo_labelled(settings: DataRecipe, folder: Path | None, images: ImageSource) -> ImageSource | None:
    if settings.pseudo_labels is None:
        return None
    known = DATASETS.get(settings.name)
    path = (data_folder(folder) or Path("data")) / settings.pseudo_labels.path
    return load_pseudo_labels(
        path,
        settings.pseudo_labels.fraction,
        name=settings.name,
        shape=images.shape,
        num_classes=images.num_classes,
        class_names=known.class_names if known else (),
    )


def load_test_images(settings: DataRecipe, folder: Path | None = None, *, download: bool = False) -> ImageSource:
    """Load the images that the networks of a recipe are evaluated on, those of `data.test` if it trains on own files.

    Raises: DataError if these name no test images, and as `load_images`.
    """
    if is_own(settings.name) and settings.test is None:
        raise DataError(
            f"data.name {settings.name} is trained on, and no test images are named; add data.test, for example "
            "--set data.test=folder:images/val"
        )
    return load_images(settings.test or settings.name, "test", folder, download=download)
