"""The `data:` section of a recipe."""

from __future__ import annotations

from pydantic import Field

from hydrabench.config.fields import Section


class PseudoLabelRecipe(Section):
    """The `data.pseudo_labels:` section: images labelled by a network, trained on beside the labelled ones."""

    path: str = Field(min_length=1)  # in the data folder, or absolute: Carmon's pickle, a Parquet file or a folder
    fraction: float = Field(1.0, gt=0, le=1)  # of them, drawn once, the same for every seed


class DataRecipe(Section):
    """The `data:` section: which images, how they are augmented, how many are held out for selection."""

    name: str
    test: str | None = None  # the test images, where `name` is files of the user's own
    crop_padding: int = Field(0, ge=0, le=64)  # random crops of the zero-padded image
    flip: bool = False  # random horizontal flips
    validation_fraction: float = Field(0.1, gt=0, le=0.5)
    fraction: float = Field(1.0, gt=0, le=1)  # of the images left by the validation split, drawn once for the seed
    pseudo_labels: PseudoLabelRecipe | None = None
