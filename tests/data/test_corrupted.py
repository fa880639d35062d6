"""CIFAR-10-C in the published layout: five blocks of severity in one file for each corruption."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hydrabench.data import load_images
from hydrabench.data.corrupted import CORRUPTIONS, MORE_CORRUPTIONS, load_corrupted
from hydrabench.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Four images; severity s of fog adds s to a picture of its own number."""
    labels = np.array([3, 8, 0, 6], dtype=np.uint8)
    pictures = np.random.default_rng(0).integers(0, 200, (4, 32, 32, 3)).astype(np.uint8)
    np.save(tmp_path / "fog.npy", np.concatenate([pictures + severity for severity in range(1, 6)]))
    np.save(tmp_path / "labels.npy", np.tile(labels, 5))
    return tmp_path, pictures, labels


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_severity_is_its_block_of_the_file(folder, severity):
    path, pictures, labels = folder
    found = load_images(f"cifar10c:{path}/fog/{severity}", "test")
    assert torch.equal(found.take(torch.arange(4)), torch.from_numpy(pictures + severity).permute(0, 3, 1, 2))
    assert found.labels.tolist() == labels.tolist()
    assert (found.num_classes, found.shape, found.names[3]) == (10, (3, 32, 32), "cat")
    assert load_corrupted(path, "fog", severity).labels.tolist() == labels.tolist()


def test_the_benchmark_has_fifteen_corruptions_and_four_more():
    assert (len(set(CORRUPTIONS)), len(set(MORE_CORRUPTIONS))) == (15, 4)
    assert not set(CORRUPTIONS) & set(MORE_CORRUPTIONS)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("fog/6", "severity 6 is outside 1..5"),
        ("fogg/1", "no corruption 'fogg'; one of gaussian_noise"),
        ("fog", r"names? a corruption and a severity; give cifar10c:DIR/CORRUPTION/SEVERITY"),
        ("snow/1", r"there is no .*snow\.npy; unpack"),
        ("frost/1", r"frost\.npy should be uint8 \(N, 32, 32, 3\) in five blocks, found float64 \(7, 3\)"),
        ("contrast/1", r"contrast\.npy is no array of numpy\.save"),
    ],
)
def test_what_is_not_there_is_one_line(folder, place, message):
    path, *_ = folder
    np.save(path / "frost.npy", np.zeros((7, 3)))
    (path / "contrast.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=message):
        load_images(f"cifar10c:{path}/{place}", "test")


def test_labels_of_another_length_are_refused(folder):
    path, *_ = folder
    np.save(path / "labels.npy", np.arange(7))
    with pytest.raises(DataError, match="should be 20 integers, found int64"):
        load_corrupted(path, "fog", 1)
