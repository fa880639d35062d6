"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib

import pytest

from hydrabench.errors import ConfigError
from hydrabench.files import (
    PENDING,
    SCRATCH,
    finish_together,
    replacing,
    sha256_of,
    shipped,
    write_json,
    write_text,
    write_together,
)


def test_a_file_that_fails_halfway_leaves_the_old_one_and_no_scratch(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as scratch:
            scratch.write_text("new, but not")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write_half()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_nan_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert not list(tmp_path.iterdir())


def test_hashes_are_those_of_hashlib(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(b"hydra" * 500_000)
    assert sha256_of(path) == hashlib.sha256(b"hydra" * 500_000).hexdigest()


def test_recipes_come_with_the_package():
    assert "digits-trades.yml" in {path.name for path in shipped("configs").iterdir()}


def test_files_of_folders_inside_are_written_together_with_the_others(tmp_path):
    write_together(tmp_path, {"a.txt": "a", "deep/er/b.bin": b"\x00b"})
    assert (tmp_path / "deep" / "er" / "b.bin").read_bytes() == b"\x00b"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "b.bin", "deep", "er"]


@pytest.mark.parametrize("name", ["../stolen.txt", "/tmp/stolen.txt"])
def test_a_folder_from_elsewhere_moves_no_file_out_of_itself(name, tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / PENDING).write_text(f'["{name}"]')
    (folder / f".{name.replace('/', '+')}{SCRATCH}").write_text("moved")
    with pytest.raises(ConfigError, match="lies outside of its folder; remove it"):
        finish_together(folder)
    assert not (tmp_path / "stolen.txt").exists()
