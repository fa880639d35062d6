"""Zip files of weights: which members are taken, and what is refused."""

from __future__ import annotations

import stat

import pytest

from hydrabench.checkpoints.archive import unpack_weights
from hydrabench.errors import CheckpointError
from tests.helpers.server import BODY, zipped


def unpack(tmp_path, content):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").mkdir()
    (tmp_path / "in" / "a.zip").write_bytes(content)
    return unpack_weights(tmp_path / "in" / "a.zip", tmp_path / "in" / "out")


@pytest.mark.parametrize(
    ("members", "dense", "masked"),
    [
        ({"model_best.pth.tar": b"M", "model_best_dense.pth.tar": b"D"}, b"D", b"M"),
        ({"a/b/checkpoint_Dense.pt": b"D", "a/b/checkpoint.PTH": b"M", "a/readme.txt": b""}, b"D", b"M"),
        ({"checkpoint_dense.pth.tar": b"C", "model_best_dense.pth.tar": b"D"}, b"D", None),
        ({"dense/only.pth.tar": b"M", "__MACOSX/._only_dense.pth": b"x", ".hidden_dense.pt": b"x"}, None, b"M"),
    ],
    ids=["the original's names", "other names", "best of two", "one"],
)
def test_the_dense_and_the_masked_member_are_told_apart_by_name(tmp_path, members, dense, masked):
    found = unpack(tmp_path, zipped(members))
    wanted = {role: content for role, content in (("dense", dense), ("masked", masked)) if content}
    assert {role: path.read_bytes() for role, path in found.items()} == wanted
    stems = {role: path.name.split(".")[0] for role, path in found.items()}
    assert stems == {role: {"dense": "checkpoint_dense", "masked": "checkpoint"}[role] for role in wanted}


@pytest.mark.parametrize("name", ["../x_dense.pth", "a/../../x.pth", "/x.pth", "..\\x.pth", "C:\\x.pth", "C:x.pth"])
def test_a_zip_file_that_leads_out_of_its_folder_is_refused_altogether(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"the zip file holds .*x.*, which leads out of its folder; nothing was"):
        unpack(tmp_path, zipped({"good_dense.pth": b"D", name: b"evil"}))
    assert {path.name for path in tmp_path.rglob("*")} == {"in", "out", "a.zip"}


def test_a_link_in_a_zip_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"'dense\.pth', which leads out of its folder"):
        unpack(tmp_path, zipped({"dense.pth": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777))


GOOD = zipped({"dense.pth": BODY})

BAD_ZIPS = {
    "no weights": (zipped({"readme.md": b"", "a/b.txt": b""}),
                   r"holds no weights \(\.pth\.tar, .*\); it holds a/b\.txt, readme"),
    "nothing": (zipped({}), r"holds no weights .* it holds nothing"),
    "no zip": (BODY, r"what came is not a whole zip file \(File is not a zip file\)"),
    "truncated": (GOOD[:-100], r"what came is not a whole zip file"),
    "damaged": (GOOD[:1000] + b"\0" * 50 + GOOD[1050:], r"what came is not a whole zip file \(.*\)"),
    "two": (zipped({"a_dense.pth": b"", "b_dense.pth": b""}),
            r"holds 2 dense checkpoints \(a_dense\.pth, b_dense\.pth\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ZIPS)
def test_a_zip_file_that_is_of_no_use_is_refused_in_one_line(tmp_path, case):
    content, message = BAD_ZIPS[case]
    with pytest.raises(CheckpointError, match=message) as problem:
        unpack(tmp_path, content)
    assert "\n" not in str(problem.value)
    assert list((tmp_path / "in" / "out").iterdir()) == []


def test_an_absurdly_large_member_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("hydrabench.checkpoints.archive.MOST_BYTES", 999)
    with pytest.raises(CheckpointError, match=r"'dense\.pth' has 1000 bytes, at most 999 are allowed"):
        unpack(tmp_path, zipped({"dense.pth": b"0" * 1000}))
