"""The `data:` section of a recipe: what it trains on, and what it leaves for validation."""

from __future__ import annotations

import pytest
import torch

from hydrabench.config import DataRecipe
from hydrabench.data import load_images, load_training_images, validation_split
from hydrabench.errors import ConfigError, DataError
from hydrabench.recipes import load_recipe


def digits(seed: int = 0, **changes: object):
    return load_training_images(DataRecipe(name="digits", validation_fraction=0.2, **changes), seed=seed)


def rows(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


def test_without_a_fraction_all_that_the_validation_split_leaves_is_trained_on():
    train, held_out = validation_split(load_images("digits", "train"), 0.2)
    found = digits()
    assert torch.equal(found.labelled.images, train.images)
    assert torch.equal(found.validation.images, held_out.images)
    assert found.pseudo is None


def test_a_fraction_leaves_the_validation_split_as_it_is():
    """0.25 of the 1297 - 259 = 1038 training images is 259.5; round() goes to the even 260."""
    whole, part = digits(), digits(fraction=0.25)
    assert torch.equal(part.validation.images, whole.validation.images)
    assert (len(part.labelled), part.labelled.split) == (260, "train")
    assert rows(part.labelled) < rows(whole.labelled)
    assert part.labelled.labels.bincount().min() > 10  # a random part, not one class


def test_a_fraction_depends_on_the_seed_and_smaller_ones_lie_in_larger_ones():
    assert torch.equal(digits(fraction=0.1).labelled.images, digits(fraction=0.1).labelled.images)
    assert not torch.equal(digits(fraction=0.1).labelled.images, digits(seed=1, fraction=0.1).labelled.images)
    assert rows(digits(fraction=0.1).labelled) < rows(digits(fraction=0.5).labelled)


def test_a_fraction_that_leaves_nothing_is_refused():
    with pytest.raises(DataError, match=r"data\.fraction 0\.0001 of 1038 training images leaves none"):
        digits(fraction=0.0001)


@pytest.mark.parametrize("fraction", ["0", "1.5"])
def test_fractions_outside_0_to_1_are_refused(fraction):
    with pytest.raises(ConfigError, match=r"data\.fraction: input should be (greater|less) than"):
        load_recipe("digits-trades", [f"data.fraction={fraction}"])


def test_a_misspelt_key_of_pseudo_labels_is_explained():
    with pytest.raises(ConfigError, match=r"data\.pseudo_labels\.fractoin: unknown key, did you mean 'fraction'"):
        load_recipe("digits-trades", ["data.pseudo_labels={path: a.pickle, fractoin: 0.5}"])


def test_pseudo_labels_change_what_a_phase_depends_on():
    plain = DataRecipe(name="digits").plain()
    assert (plain["fraction"], plain["pseudo_labels"]) == (1.0, None)
    more = DataRecipe(name="digits", fraction=0.5, pseudo_labels={"path": "a.pickle"}).plain()
    assert more == {**plain, "fraction": 0.5, "pseudo_labels": {"path": "a.pickle", "fraction": 1.0}}
