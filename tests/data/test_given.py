"""Images that a caller hands over: every form, and every mistake with its value and what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from hydrabench.data import given_images, load_block, pixels
from hydrabench.errors import DataError

GREY = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
LABELS = torch.tensor([2, 0])


class Pillows(Dataset):
    """The images of GREY as torchvision's data sets have them without a transform."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return 2

    def __getitem__(self, number):
        self.read += 1
        return Image.fromarray(GREY[number].permute(1, 2, 0).numpy()), int(LABELS[number])


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


FORMS = {
    "tensors": (GREY, LABELS),
    "floats": (GREY / 255, LABELS),
    "float64": (GREY.double() / 255, LABELS.int()),
    "arrays": (GREY.numpy(), LABELS.numpy()),
    "dataset": TensorDataset(GREY / 255, LABELS),
    "pillow": Pillows(),
}


@pytest.mark.parametrize("data", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_pixels_and_labels(data):
    images = given_images(data)
    assert (len(images), images.shape, images.num_classes) == (2, (3, 4, 5), 3)
    assert images.labels.tolist() == [2, 0]
    assert torch.equal(pixels(images.take(torch.tensor([0, 1]))), GREY.float() / 255)
    block = load_block(images, 0, (0, 1))
    assert block.images.dtype == torch.float32
    assert block.shas == load_block(given_images((GREY, LABELS)), 0, (0, 1)).shas


def test_a_dataset_is_read_only_as_far_as_it_is_needed():
    data = Pillows()
    assert len(given_images(data, 1)) == 1
    assert data.read == 1


def test_more_of_the_same_images_have_the_same_name_and_others_another():
    name = given_images((GREY, LABELS)).name
    assert given_images((GREY[:1], LABELS[:1])).name == name
    assert given_images((GREY.flip(0), LABELS)).name != name
    assert given_images((GREY, LABELS + 1)).name != name


NORMALISED = (torch.rand(2, 3, 4, 4) * 4 - 2.125).clamp(-2, 1.5)
MISTAKES = {
    "three": ((GREY, LABELS, LABELS), r"data is a tuple of 3 parts; give a registered name, a pair"),
    "flat": ((GREY[0], LABELS), r"images have shape \(3, 4, 5\); allowed is \(N, C, H, W\)"),
    "none": ((GREY[:0], LABELS[:0]), r"images have shape \(0, 3, 4, 5\); allowed is \(N, C, H, W\)"),
    "last": ((torch.rand(2, 8, 8, 3), LABELS), r"images have shape \(2, 8, 8, 3\).*give images\.permute\(0, 3, 1, 2\)"),
    "whole": ((GREY.long(), LABELS), r"images have type torch\.int64; allowed are uint8 in 0\.\.255 and floats"),
    "levels": ((GREY.float(), LABELS), r"images lie in \[0, 119\]; allowed is \[0, 1\]: give images / 255"),
    "normalised": ((NORMALISED, LABELS), r"images lie in \[-\d.*\]; allowed is \[0, 1\]: .* let the network do that"),
    "nan": ((torch.full((2, 3, 4, 4), torch.nan), LABELS), r"images lie in \[nan, nan\]; allowed is \[0, 1\]"),
    "few": ((GREY, LABELS[:1]), r"labels have shape \(1,\); allowed is \(2,\), one for each image"),
    "one-hot": ((GREY, torch.eye(3)[LABELS]), r"labels have shape \(2, 3\); allowed is \(2,\)"),
    "floats": ((GREY, LABELS.float()), r"labels have type torch\.float32; allowed are whole numbers from 0 on"),
    "negative": ((GREY, LABELS - 1), r"labels lie in -1\.\.1; allowed are whole numbers from 0 on"),
    "text": (("cat", LABELS), r"images are a str that is no tensor or array"),
    "ragged": ((np.array([GREY[0].numpy(), None], dtype=object), LABELS), r"images are a ndarray that is no tensor"),
    "number": (3, r"data is 3; give a registered name, a pair"),
    "loader": (DataLoader(TensorDataset(GREY, LABELS)), r"of a DataLoader, give its `dataset`"),
    "endless": (Endless(), r"data is .*; give a registered name, a pair \(images, labels\), or a .* with a length"),
    "alone": (TensorDataset(GREY), r"item 0 of the data set is .*; items are an image and its label"),
    "empty": (TensorDataset(GREY[:0], LABELS[:0]), r"the data set has no items"),
    "class": (TensorDataset(GREY, LABELS.float()), r"item 0 has the label .*; labels are whole numbers from 0 on"),
}


@pytest.mark.parametrize(("data", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_what_is_allowed(data, message):
    with pytest.raises(DataError, match=message):
        given_images(data)


def test_images_of_several_sizes_and_too_many_items_are_refused():
    class Sizes(Pillows):
        def __getitem__(self, number):
            return torch.zeros(1, 4 + number, 4), 0

    with pytest.raises(DataError, match=r"item 1 has an image of shape \(1, 5, 4\) .*, item 0 one of \(1, 4, 4\)"):
        given_images(Sizes())
    with pytest.raises(DataError, match=r"n 3 is outside 1\.\.2, the items of the data set"):
        given_images(Pillows(), 3)
