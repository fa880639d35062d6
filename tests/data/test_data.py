"""Data sets, blocks, hashes, the validation split and augmentation."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn import datasets as sklearn_datasets

from hydrabench.data import (
    ImageSet,
    augment,
    block_indices,
    first_images,
    load_block,
    load_images,
    pixels,
    validation_split,
)
from hydrabench.errors import ConfigError, DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_cifar = pytest.mark.skipif(
    not (SHARED / "cifar10").is_dir(),
    reason="real CIFAR-10 files are not beside this checkout (../shared/data/cifar10)",
)


def some_images(count: int = 7, side: int = 4) -> ImageSet:
    values = torch.arange(count * side * side, dtype=torch.int64) % 256
    return ImageSet("made", "test", values.to(torch.uint8).view(count, 1, side, side), torch.arange(count) % 3, 3)


def test_digits_are_split_into_1297_and_500_real_images():
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert (len(train), len(test), tuple(test.images.shape[1:])) == (1297, 500, (1, 8, 8))
    raw = sklearn_datasets.load_digits()
    assert torch.equal(train.labels, torch.from_numpy(raw.target[:1297]).long())
    assert torch.equal((test.images.double() * 16 / 255).round().squeeze(1), torch.from_numpy(raw.images[1297:]))
    assert test.labels.bincount().min() >= 45


def test_pixels_are_the_float32_quotients_by_255_in_every_precision():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pixels(levels), torch.arange(256.0) / 255)
    assert torch.equal(pixels(levels, torch.float64), (torch.arange(256.0) / 255).double())
    assert pixels(levels).min() == 0
    assert pixels(levels).max() == 1


def test_blocks_are_cut_at_fixed_multiples_whatever_the_number_of_images():
    assert [len(block) for block in block_indices(250, 100)] == [100, 100, 50]
    assert block_indices(250, 100)[1] == tuple(range(100, 200)) == block_indices(500, 100)[1]
    assert block_indices(1, 100) == [(0,)]


def test_a_block_carries_the_hash_of_every_images_float32_pixels():
    block = load_block(some_images(), 0, (2, 5))
    by_hand = np.arange(5 * 16, 6 * 16, dtype=np.float32) / np.float32(255)
    assert block.shas[1] == hashlib.sha256(by_hand.tobytes()).hexdigest()
    assert (block.indices, block.labels.tolist()) == ((2, 5), [2, 2])


def test_the_validation_split_is_fixed_disjoint_and_complete():
    images = ImageSet("made", "train", torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1), torch.zeros(60), 3)
    train, held_out = validation_split(images, 0.25)
    assert (len(train), len(held_out), held_out.split) == (45, 15, "validation")
    assert torch.equal(torch.cat([train.images, held_out.images]).flatten().sort().values, images.images.flatten())
    assert torch.equal(held_out.images, validation_split(images, 0.25)[1].images)


def test_a_validation_fraction_that_leaves_nothing_is_refused():
    with pytest.raises(DataError, match=r"validation_fraction 0\.01 of 7 images leaves a part empty"):
        validation_split(some_images(7), 0.01)


def test_more_images_than_there_are_is_an_error_with_the_range():
    with pytest.raises(DataError, match=r"-n 8 is outside 1\.\.7, the test images of made"):
        first_images(some_images(7), 8)
    with pytest.raises(DataError, match=r"-n 0 is outside 1\.\.7"):
        first_images(some_images(7), 0)
    assert (first_images(some_images(7), None), first_images(some_images(7), 3)) == (7, 3)


def test_a_crop_without_padding_and_flip_changes_nothing():
    images = some_images().images
    assert augment(images, crop_padding=0, flip=False, generator=torch.Generator()) is images


def test_every_crop_is_a_window_of_the_zero_padded_image():
    images = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).repeat(200, 2, 1, 1)
    cropped = augment(images, crop_padding=1, flip=False, generator=torch.Generator().manual_seed(0))
    padded = np.pad(np.arange(1, 10).reshape(3, 3), 1)
    windows = {tuple(padded[i : i + 3, j : j + 3].flatten()) for i in range(3) for j in range(3)}
    found = {tuple(image.flatten().tolist()) for image in cropped[:, 0]}
    assert found == windows  # all nine of them, and nothing else
    assert torch.equal(cropped[:, 0], cropped[:, 1])  # channels move together


def test_half_of_the_images_are_mirrored():
    images = some_images().images.repeat(200, 1, 1, 1)
    flipped = augment(images, crop_padding=0, flip=True, generator=torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(3)).all(dim=(1, 2, 3))
    kept = (flipped == images).all(dim=(1, 2, 3))
    assert (mirrored | kept).all()
    assert 0.45 < mirrored.float().mean() < 0.55


def test_augmentation_depends_on_its_generator_alone():
    images = some_images(20).images
    results = [
        augment(images, crop_padding=2, flip=True, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def write_parquet(folder: Path, count: int, column: str = "img") -> np.ndarray:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    encoded = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        encoded.append({"bytes": stream.getvalue(), "path": None})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: encoded, "label": list(range(count))}), folder / "test-00000-of-00001.parquet")
    return images


@pytest.mark.parametrize(("place", "column"), [("cifar10", "img"), (".", "image")])
def test_cifar10_is_read_from_parquet_files_pixel_for_pixel(tmp_path, place, column):
    raw = write_parquet(tmp_path / place, 5, column)
    found = load_images("cifar10", "test", tmp_path)
    assert torch.equal(found.images, torch.from_numpy(raw).permute(0, 3, 1, 2))
    assert found.images.is_contiguous()
    assert found.labels.tolist() == [0, 1, 2, 3, 4]


def test_the_data_folder_may_come_from_the_environment(tmp_path, monkeypatch):
    write_parquet(tmp_path, 2)
    monkeypatch.setenv("HYDRABENCH_DATA", str(tmp_path))
    assert len(load_images("cifar10", "test")) == 2


def test_missing_data_says_where_it_was_looked_for_and_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"no CIFAR-10 in .*--data-dir or HYDRABENCH_DATA, or add --download"):
        load_images("cifar10", "test", tmp_path)
    with pytest.raises(DataError, match=r"data folder .*nowhere' does not exist; correct --data-dir"):
        load_images("cifar10", "test", tmp_path / "nowhere")


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "test-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"test-0\.parquet is not a Parquet file with columns img and label"):
        load_images("cifar10", "test", tmp_path)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ConfigError, match="unknown data set 'digit'; did you mean 'digits'"):
        load_images("digit", "test")


@needs_cifar
def test_the_real_cifar10_test_images_are_read():
    found = load_images("cifar10", "test", SHARED)
    assert len(found) == 5000
    assert found.labels.bincount().tolist() == [500] * 10
    assert found.labels[:100].bincount().min() >= 8
