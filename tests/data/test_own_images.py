"""The user's own images: folders, files of numpy's, Parquet files; every mistake is one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hydrabench.data import load_block, load_images
from hydrabench.errors import DataError

RNG = np.random.default_rng(0)


def save_images(root, sizes):
    """Two classes with one image of each (width, height); returns the pixels by path."""
    found = {}
    for group in ("cat", "ant"):
        (root / group).mkdir(parents=True)
        for number, size in enumerate(sizes):
            levels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(levels).save(root / group / f"{number}.png")
            found[f"{group}/{number}.png"] = levels
    return found


def test_a_folder_of_classes_is_read_as_image_folder_does(tmp_path):
    saved = save_images(tmp_path, [(6, 4)] * 3)
    images = load_images(f"folder:{tmp_path}", "test")
    assert (images.shape, images.num_classes, images.names) == ((3, 4, 6), 2, ("ant", "cat"))
    pixels = {level.transpose(2, 0, 1).tobytes(): path.startswith("cat") for path, level in saved.items()}
    assert [pixels[image.numpy().tobytes()] for image in images.take(torch.arange(6))] == images.labels.bool().tolist()
    assert images.labels.tolist() != sorted(images.labels.tolist())


def test_images_of_several_sizes_are_cut_as_imagenets_are(tmp_path):
    save_images(tmp_path, [(300, 260), (260, 300)])
    images = load_images(f"folder:{tmp_path}", "test")
    assert images.take(torch.arange(4)).shape == (4, 3, 224, 224)


@pytest.mark.parametrize("layout", [(0, 2, 3, 1), (0, 1, 2, 3)], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_arrays_of_either_layout_and_type_are_the_same_images(tmp_path, layout, kind):
    levels = RNG.integers(0, 256, (5, 3, 8, 9), dtype=np.uint8)
    values = levels if kind is np.uint8 else levels / 255
    labels = np.arange(5)
    np.savez(tmp_path / "a.npz", images=values.transpose(layout), labels=labels, class_names=list("abcdefg"))
    images = load_images(f"npz:{tmp_path / 'a.npz'}", "test")
    assert (images.shape, images.num_classes, images.names) == ((3, 8, 9), 7, tuple("abcdefg"))
    block = load_block(images, 0, (0, 3))
    assert torch.allclose(block.images, torch.from_numpy(levels[[0, 3]]).float() / 255, atol=1e-7)


def test_parquet_files_keep_their_order_size_and_class_names(tmp_path, write_parquet):
    pixels = write_parquet(tmp_path / "rows.parquet", [2, 0, 1])
    for place in (tmp_path, tmp_path / "rows.parquet"):
        images = load_images(f"parquet:{place}", "test")
        assert images.labels.tolist() == [2, 0, 1]
        assert torch.equal(images.take(torch.arange(3)), torch.from_numpy(pixels).permute(0, 3, 1, 2))


def npz(**arrays):
    def write(folder):
        np.savez(folder / "a.npz", **arrays)
        return f"npz:{folder / 'a.npz'}"

    return write


IMAGES, LABELS = np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, int)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: "folder:nowhere", r"there is no nowhere; give folder:DIR \(one folder per class\), npz:FILE"),
        (lambda folder: f"folder:{folder}", r"holds no folder per class with images \(\.bmp"),
        (lambda folder: f"parquet:{folder}", r"holds no \*\.parquet"),
        (lambda folder: f"npz:{folder}", r"is no file of numpy\.savez without objects"),
        (npz(x=IMAGES), r"holds x; it needs the arrays images and labels"),
        (npz(images=IMAGES, labels=np.zeros(3, int)), r"labels should be \(2,\) integers, found int64 \(3,\)"),
        (npz(images=IMAGES, labels=np.zeros(2)), r"labels should be \(2,\) integers, found float64 \(2,\)"),
        (npz(images=IMAGES.astype(int), labels=LABELS), r"uint8, or float in \[0, 1\], found torch\.int64"),
        (npz(images=IMAGES - 1.5, labels=LABELS), r"lie in \[-1\.5, -1\.5\], not in \[0, 1\]; undo the normalisation"),
        (npz(images=IMAGES + 254.0, labels=LABELS), r"lie in \[254, 254\], not in \[0, 1\]; divide by 255"),
        (npz(images=np.zeros((2, 3, 3, 3), np.uint8), labels=LABELS), r"the shape \(2, 3, 3, 3\), which does not tell"),
        (npz(images=IMAGES[:0], labels=LABELS[:0]), r"the test files hold no images"),
    ],
)
def test_what_is_no_set_of_labelled_images_is_refused(tmp_path, write, message):
    with pytest.raises(DataError, match=message):
        load_images(write(tmp_path), "test")


def test_they_are_trained_on_under_the_name_of_the_split(tmp_path):
    images = load_images(npz(images=IMAGES, labels=LABELS)(tmp_path), "train")
    assert (images.split, len(images), images.shape) == ("train", 2, (3, 8, 8))


def test_corrupted_test_images_are_not_trained_on(tmp_path):
    with pytest.raises(DataError, match=r"^cifar10c:.*/fog/3 has no train images: .* is evaluated only"):
        load_images(f"cifar10c:{tmp_path}/fog/3", "train")
