"""The cache of decoded images: it saves the decoding, and never gives pixels that the files do not hold."""

from __future__ import annotations

import os
import pwd

import pytest
import torch

from hydrabench.data import load_images, parquet
from hydrabench.errors import ConfigError
from hydrabench.files import cache_folder


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """How many images each decoding had."""
    calls: list[int] = []
    original = parquet._decode

    def decode(files, count, shape):
        calls.append(count)
        return original(files, count, shape)

    monkeypatch.setattr(parquet, "_decode", decode)
    return calls


def channels_first(images) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_images_are_decoded_once(tmp_path, write_parquet, decoded, cache):
    raw = write_parquet(tmp_path / "cifar10" / "test-0.parquet", range(5))
    found = [load_images("cifar10", "test", tmp_path) for _ in range(3)]
    assert decoded == [5]
    assert all(torch.equal(images.images, channels_first(raw)) for images in found)
    assert all(images.labels.tolist() == [0, 1, 2, 3, 4] for images in found)
    assert len(list(cache.iterdir())) == 1


def test_a_file_of_the_same_name_size_and_age_with_other_pixels_is_decoded_anew(tmp_path, write_parquet, decoded):
    file = tmp_path / "cifar10" / "test-0.parquet"
    write_parquet(file, range(3), seed=0)
    load_images("cifar10", "test", tmp_path)
    before = file.stat()
    raw = write_parquet(file, range(3), seed=1)
    with file.open("ab") as grown:  # to nothing: random images have PNGs of one size, but say so
        assert grown.tell() == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert torch.equal(load_images("cifar10", "test", tmp_path).images, channels_first(raw))
    assert decoded == [3, 3]


def test_other_labels_of_the_same_images_are_read_from_the_file(tmp_path, write_parquet):
    file = tmp_path / "cifar10" / "test-0.parquet"
    write_parquet(file, [1, 2, 3])
    load_images("cifar10", "test", tmp_path)
    write_parquet(file, [4, 5, 6])
    assert load_images("cifar10", "test", tmp_path).labels.tolist() == [4, 5, 6]


def test_files_in_another_order_are_other_images(tmp_path, write_parquet):
    first, second = (tmp_path / "cifar10" / f"test-{number}.parquet" for number in range(2))
    raw = [write_parquet(first, [0], seed=1), write_parquet(second, [1], seed=2)]
    load_images("cifar10", "test", tmp_path)
    first.rename(tmp_path / "cifar10" / "test-2.parquet")
    found = load_images("cifar10", "test", tmp_path)
    assert torch.equal(found.images, torch.cat([channels_first(raw[1]), channels_first(raw[0])]))


@pytest.mark.parametrize("position", [0, 5000, -40, -1], ids=["first pixel", "pixel", "last pixels", "hash"])
def test_a_cache_with_a_wrong_byte_is_decoded_again(tmp_path, write_parquet, decoded, cache, position):
    raw = write_parquet(tmp_path / "cifar10" / "test-0.parquet", range(3))
    load_images("cifar10", "test", tmp_path)
    kept = next(cache.iterdir())
    data = bytearray(kept.read_bytes())
    data[position] ^= 1
    kept.write_bytes(data)
    for _ in range(2):  # and put right
        assert torch.equal(load_images("cifar10", "test", tmp_path).images, channels_first(raw))
    assert decoded == [3, 3]


@pytest.mark.parametrize("size", [0, 31, 4000])
def test_a_cache_that_was_cut_short_is_decoded_again(tmp_path, write_parquet, decoded, cache, size):
    raw = write_parquet(tmp_path / "cifar10" / "test-0.parquet", range(3))
    load_images("cifar10", "test", tmp_path)
    kept = next(cache.iterdir())
    kept.write_bytes(kept.read_bytes()[:size])
    assert torch.equal(load_images("cifar10", "test", tmp_path).images, channels_first(raw))
    assert decoded == [3, 3]


def test_images_are_decoded_every_time_where_nothing_can_be_kept(tmp_path, write_parquet, decoded, monkeypatch):
    raw = write_parquet(tmp_path / "cifar10" / "test-0.parquet", range(3))
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("HYDRABENCH_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert torch.equal(load_images("cifar10", "test", tmp_path).images, channels_first(raw))
    assert decoded == [3, 3]


def test_without_a_home_folder_images_are_decoded_each_time(tmp_path, write_parquet, decoded, monkeypatch):
    raw = write_parquet(tmp_path / "cifar10" / "test-0.parquet", range(3))
    for name in ("HOME", "XDG_CACHE_HOME", "HYDRABENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    with pytest.raises(ConfigError, match="this user has no home folder to keep files in; set HYDRABENCH_CACHE to"):
        cache_folder()
    for _ in range(2):
        assert torch.equal(load_images("cifar10", "test", tmp_path).images, channels_first(raw))
    assert decoded == [3, 3]
