"""Refuse held-out images that an earlier phase was trained on, so that the selection is honest."""

from __future__ import annotations

from hydrabench.checkpoints import HeldOut
from hydrabench.data import ImageSource, load_images, validation_split
from hydrabench.data.identity import source_fingerprint
from hydrabench.errors import DataError
from hydrabench.recipes import Recipe
from hydrabench.workflows.run_options import RunOptions


def held_out_of(recipe: Recipe, validation: ImageSource) -> HeldOut:
    """Return what a checkpoint says of the images that were held out while it was trained."""
    return HeldOut(fraction=recipe.data.validation_fraction, sha256=source_fingerprint(validation))


def require_held_out(before: HeldOut | None, recipe: Recipe, validation: ImageSource, options: RunOptions) -> None:
    """Raise DataError if the network that a phase starts from may have been trained on its held-out images.

    Args: before: what its checkpoint says; None: it does not say. validation: the held-out images of the phase.
    A smaller part of one set is a part of a larger one, see `validation_split`.
    """
    fraction = recipe.data.validation_fraction
    if before is None:
        return
    if fraction > before.fraction:
        raise DataError(
            f"data.validation_fraction {fraction:g} holds out images that the network was trained on, which held out "
            f"{before.fraction:g}; give at most that"
        )
    if fraction < before.fraction:
        whole = options.images or load_images(recipe.data.name, "train", options.data_dir)
        _, validation = validation_split(whole, before.fraction)
    if source_fingerprint(validation) != before.sha256:
        raise DataError(
            f"the training images of {recipe.data.name} are not those that the network was trained with, so that the "
            "held-out ones may be among them; use the same data (--data-dir)"
        )
