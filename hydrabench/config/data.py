"""The `data:` section of a recipe."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt

from hydrabench.config.fields import Section


class DataRecipe(Section):
    """The `data:` section: which images, how they are augmented, how many are held out for selection."""

    name: str
    crop_padding: NonNegativeInt = 0  # random crops of the zero-padded image
    flip: bool = False  # random horizontal flips
    validation_fraction: float = Field(0.1, gt=0, le=0.5)
