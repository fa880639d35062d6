"""Which images are evaluated: any prefix, every K-th, or a published list; each selection has one name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hydrabench.data import Choice, choose, load_images
from hydrabench.data.encoded import EncodedImages, Files, ParquetRows
from hydrabench.errors import ConfigError, DataError
from hydrabench.selection import describe_selection, selected_indices, selection_name

NAMES = [f"n{number:08d}/ILSVRC2012_val_{37 * number % 40:08d}.JPEG" for number in range(40)]
IMAGES = EncodedImages("imagenet", "test", Files(Path("val"), NAMES), torch.arange(40), torch.zeros(40), 1000)
DIGITS = load_images("digits", "test")


def test_every_twentieth_image_is_cohens_selection():
    assert choose(DIGITS, Choice(step=20)) == tuple(range(0, 500, 20))
    assert choose(DIGITS, Choice(n=3, step=20)) == (0, 20, 40)
    assert choose(DIGITS, Choice(n=3)) == (0, 1, 2)
    assert choose(DIGITS, Choice()) == tuple(range(500))


def test_a_list_may_hold_positions_and_names_with_or_without_folders(tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text(f"# mine\n\n7\n{NAMES[12]}\n val/{NAMES[3]}\r\nILSVRC2012_val_00000037_n00000001.JPEG\n")
    assert choose(IMAGES, Choice(ids=file)) == (1, 3, 7, 12)
    assert choose(IMAGES, Choice(n=2, ids=file)) == (7, 12)


def test_names_follow_the_order_of_the_set(tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text(NAMES[3])
    order = torch.arange(40).flip(0)
    assert choose(IMAGES.subset(order, "test-shuffled"), Choice(ids=file)) == (36,)


def test_rows_of_parquet_files_are_found_by_the_path_that_they_have(tmp_path, write_parquet):
    file = tmp_path / "imagenet" / "validation-0.parquet"
    write_parquet(file, [5, 6, 7], image="image")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(file)["image"].to_pylist()
    for number, row in enumerate(rows[:2]):
        row["path"] = f"ILSVRC2012_val_{number:08d}_n01440764.JPEG"
    pq.write_table(pa.table({"image": rows, "label": [5, 6, 7]}), file)
    images = EncodedImages("imagenet", "test", ParquetRows([file]), torch.arange(3), torch.zeros(3), 1000)
    (tmp_path / "ids").write_text("n01440764/ILSVRC2012_val_00000001.JPEG")
    assert choose(images, Choice(ids=tmp_path / "ids")) == (1,)


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (DIGITS, "3\n500\n", r"ids\.txt: '500' is outside 0\.\.499 of the test images of digits"),
        (DIGITS, "9" * 5000, r"ids\.txt: '9{39}…9{39}' is outside 0\.\.499"),
        (DIGITS, "a.png", r"ids\.txt: 'a\.png' is no position, and these have no file names, of the test images of"),
        (DIGITS, "-1", r"ids\.txt: '-1' is no position"),
        (IMAGES, "ILSVRC2012_val_00000041.JPEG", r"41\.JPEG' is the name of none of the test images of imagenet"),
        (IMAGES, f"1\n{NAMES[1]}", r"names an image twice, before as '1'"),
        (DIGITS, "\n# nothing\n", r"ids\.txt names no image; write one a line, a position or a file name"),
    ],
    ids=range(7),
)
def test_a_line_that_names_no_image_is_refused(tmp_path, images, text, message):
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        choose(images, Choice(ids=tmp_path / "ids.txt"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(n=501), r"-n 501 is outside 1\.\.500, the test images of digits"),
        (Choice(n=26, step=20), r"-n 26 is outside 1\.\.25, 1 in 20 of the test images of digits"),
        (Choice(n=0), r"-n 0 is outside 1\.\.500"),
        (Choice(step=0), r"--skip 0 is outside 1\.\.500"),
        (Choice(step=10**30), r"--skip 10{30} is outside 1\.\.500"),
        (Choice(step=2, ids=Path("x")), r"--ids names the images and --skip 2 skips some; give one of the two"),
        (Choice(ids=Path("/dev/zero")), r"/dev/zero is a device or a pipe"),
    ],
    ids=range(7),
)
def test_a_choice_that_there_is_not_is_refused(choice, message):
    with pytest.raises((ConfigError, DataError), match=message):
        choose(DIGITS, choice)


@given(
    st.one_of(
        st.builds(range, st.integers(0, 9), st.integers(10, 99), st.integers(1, 9)),
        st.sets(st.integers(0, 99), min_size=1),
    )
)
def test_a_described_selection_reads_back_as_itself(chosen):
    indices = tuple(sorted(chosen))
    described = {"n": len(indices), **describe_selection(indices)}
    assert tuple(selected_indices(described)) == indices
    assert described.get("chosen", "") == selection_name(indices)
    assert (described == {"n": len(indices)}) == (indices == tuple(range(len(indices))))


@pytest.mark.parametrize(
    "dataset",
    [
        {},
        {"n": None},
        {"n": True},
        {"n": 10**12},
        {"n": 0},
        {"n": 2, "first": 0, "step": 20},
        {"n": 2, "first": 0, "step": 0, "chosen": "1 in 20 from 0"},
        {"n": 2, "chosen": "1 in 20 from 0"},
        {"n": 2, "images": [3, 3], "chosen": ""},
        {"n": 2, "images": [1, 0], "chosen": ""},
        {"n": 2, "images": [0, "1"], "chosen": ""},
        {"n": 3, "images": [0, 2], "chosen": "1 in 2 from 0"},
        {"n": 2, "images": [-1, 2], "chosen": "1 in 3 from -1"},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_contradicts_itself_is_refused(dataset):
    with pytest.raises(ValueError, match=r"dataset\.(n|first|images|chosen) "):
        selected_indices(dataset)
