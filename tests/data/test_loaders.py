"""The minibatches of training: the same bytes as ever, resumable, and mixed with pseudo-labelled images."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.config import DataRecipe
from hydrabench.data import ImageSet, TrainingBatches, batches, load_images, pixels, validation_split
from hydrabench.data.augment import augment
from hydrabench.data.loaders import minibatch_sizes
from hydrabench.runtime import stream

CPU = torch.device("cpu")
AUGMENTED = DataRecipe(name="digits", crop_padding=1, flip=True, validation_fraction=0.15)
PLAIN = DataRecipe(name="digits")
# Of 9 minibatches of epochs 0 and 3 each, made by the training loop before it had TrainingBatches.
BEFORE = "c2c291f0ffa1551828f82bb1d14c4c569073569525a2ec907fd64c2029f2aca1"


def numbered(count: int, first: int = 0, label: int = 0) -> ImageSet:
    """Images of one pixel, which is their number."""
    values = torch.arange(first, first + count, dtype=torch.uint8)
    return ImageSet("made", "train", values.view(-1, 1, 1, 1), torch.full((count,), label), 2)


def numbers(x: torch.Tensor) -> list[int]:
    return (x.flatten() * 255).round().int().tolist()


def made(labelled: ImageSet, pseudo: ImageSet | None = None, size: int = 4, key: tuple = (1, "train")):
    return TrainingBatches(labelled, pseudo, PLAIN, batch_size=size, key=key, device=CPU)


def test_minibatches_have_the_bytes_that_checkpoints_were_trained_on():
    train, _ = validation_split(load_images("digits", "train"), 0.15)
    minibatches = TrainingBatches(train, None, AUGMENTED, batch_size=128, key=(5, "train"), device=CPU)
    digest = hashlib.sha256()
    for epoch in (0, 3):
        for x, y in minibatches.epoch(epoch):
            digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    assert minibatches.per_epoch == 9
    assert digest.hexdigest() == BEFORE


@pytest.mark.parametrize("epoch", [0, 2])
def test_minibatches_agree_with_the_plain_loop(epoch):
    train, _ = validation_split(load_images("digits", "train"), 0.15)
    minibatches = TrainingBatches(train, None, AUGMENTED, batch_size=200, key=(7, "prune"), device=CPU)
    order = torch.randperm(len(train), generator=stream(7, "prune", "order", epoch))
    found = list(minibatches.epoch(epoch))
    assert [len(y) for _, y in found] == [200, 200, 200, 200, 200, 102]
    for number, indices in enumerate(batches(len(train), 200, order)):
        images = augment(
            train.images[indices],
            crop_padding=1,
            flip=True,
            generator=stream(7, "prune", "augment", epoch * 6 + number),
        )
        assert torch.equal(found[number][0], pixels(images))
        assert torch.equal(found[number][1], train.labels[indices])


@settings(max_examples=20)
@given(first=st.integers(0, 4), epoch=st.integers(0, 3), mixed=st.booleans())
def test_an_epoch_may_begin_at_any_minibatch(first, epoch, mixed):
    minibatches = TrainingBatches(
        load_images("digits", "test"),
        load_images("digits", "train") if mixed else None,
        AUGMENTED,
        batch_size=128,
        key=(0,),
        device=CPU,
    )
    whole, rest = list(minibatches.epoch(epoch)), list(minibatches.epoch(epoch, first=first))
    assert len(whole) == minibatches.per_epoch == 4
    assert len(rest) == 4 - first
    for expected, found in zip(whole[first:], rest, strict=True):
        assert torch.equal(expected[0], found[0])
        assert torch.equal(expected[1], found[1])


def test_an_epoch_visits_every_image_once_and_in_an_order_of_its_own():
    orders = [[n for x, _ in made(numbered(10)).epoch(epoch) for n in numbers(x)] for epoch in (0, 0, 1)]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(10))
    assert orders[0] == orders[1] != orders[2]
    assert [n for x, _ in made(numbered(10), key=(2, "train")).epoch(0) for n in numbers(x)] != orders[0]


def test_half_of_a_mixed_minibatch_is_pseudo_labelled_and_comes_second():
    minibatches = made(numbered(10), numbered(60, first=100, label=1))
    found = list(minibatches.epoch(0))
    assert [y.tolist() for _, y in found] == [[0] * 4 + [1] * 4] * 2 + [[0] * 2 + [1] * 4]
    assert sorted(n for x, _ in found for n in numbers(x) if n < 100) == list(range(10))
    alone = [numbers(x) for x, _ in made(numbered(10)).epoch(0)]
    assert [[n for n in numbers(x) if n < 100] for x, _ in found] == alone  # labelled images keep their order


def test_every_epoch_sees_other_pseudo_labelled_images():
    minibatches = made(numbered(10), numbered(60, first=100, label=1))
    seen = [{n for x, _ in minibatches.epoch(epoch) for n in numbers(x) if n >= 100} for epoch in range(3)]
    assert [len(epoch) for epoch in seen] == [12, 12, 12]
    assert len(seen[0] | seen[1] | seen[2]) > 20


def test_a_mixed_epoch_ends_with_the_shorter_set():
    """6 pseudo-labelled images are minibatches of 4 and 2, so 8 of the 10 labelled ones are seen."""
    minibatches = made(numbered(10), numbered(6, first=100, label=1))
    found = list(minibatches.epoch(1))
    assert minibatches.per_epoch == len(found) == 2
    assert [y.tolist() for _, y in found] == [[0] * 4 + [1] * 4, [0] * 4 + [1] * 2]


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),
        (1, 4, [1]),
        (5, 4, [5]),
        (8, 4, [4, 4]),
        (3, 1, [1, 1, 1]),
        (1102, 367, None),
    ],
)
def test_a_single_image_that_is_left_over_joins_the_minibatch_before_it(count, size, sizes):
    """Batch norm has no statistics of one vector: 1,102 = 3 · 367 + 1 ended in a traceback."""
    assert minibatch_sizes(count, size) == (sizes or [367, 367, 368])
    if count < 256:
        found = [numbers(x) for x, _ in made(numbered(count), size=size).epoch(0)]
        assert list(map(len, found)) == sizes
        assert sorted(n for minibatch in found for n in minibatch) == list(range(count))
