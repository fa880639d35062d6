"""Tables of Cohen's tools: ours as an analysis script reads them, theirs as a report does, and what is refused."""

from __future__ import annotations

import io
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrabench.errors import ConfigError, LedgerError
from hydrabench.reporting import build_leaderboard, csv_text, markdown, rich_tables, summary_json
from hydrabench.reporting.cohen import least_radius, table_names, table_text
from hydrabench.reporting.cohen_import import read_tables
from hydrabench.reporting.evaluations import read_evaluation
from hydrabench.reporting.legend import headings, notes


def read_table(text):
    """The only evaluation of an import."""
    (evaluation,) = read_tables(text).evaluations
    return evaluation


HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
LINES = (
    "0\t0\t0\t0.31\t1\t0:00:12.500000",
    "1\t1\t2\t0.526\t0\t0:01:00",
    "2\t2\t-1\t0.0\t0\t1 day, 1:00:00.5",
    "3\t0\t0\t0.25\t1\t7.25",
)
ABOUT = "name=resnet110,dataset=digits,sigma=0.25"


@pytest.fixture
def table(tmp_path):
    def write(*lines, about=ABOUT, head=HEAD, name="sigma_0.25"):
        path = tmp_path / name
        path.write_text("\n".join((head, *lines)) + "\n")
        return f"{path},{about}"

    return write


def test_a_smoothing_run_is_written_as_analysis_scripts_read_it(tmp_path, write_run):
    """Read by column name with pandas, as locuslab's analyze.py does; image 3 is wrong, 5 abstains."""
    run = read_evaluation(write_run(tmp_path / "run", "smoothing", wrong=[3], fails=[5], radius=0.123456789012345))
    text = table_text(run)
    assert text.splitlines()[0] == HEAD
    assert text.splitlines()[1] == "0\t0\t0\t0.123456789012345\t1\t0:00:00.010000"
    frame = pd.read_csv(io.StringIO(text), delimiter="\t")
    assert list(frame["idx"]) == list(range(10))
    assert frame["predict"][5] == -1
    assert frame["radius"][5] == 0
    assert list(frame["correct"]) == [1, 1, 1, 0, 1, 0, 1, 1, 1, 1]
    assert (frame["correct"] & (frame["radius"] >= 0.1)).mean() == 0.8
    assert (frame["correct"] == (frame["predict"] == frame["label"])).all()


def test_a_run_of_mode_predict_is_written_without_radii_as_predict_py_does(tmp_path, write_run):
    run = read_evaluation(write_run(tmp_path / "run", "smoothing"))
    text = table_text(replace(run, settings={**run.settings, "mode": "predict"}))
    assert text.splitlines()[:2] == ["idx\tlabel\tpredict\tcorrect\ttime", "0\t0\t0\t1\t0:00:00.010000"]


def test_every_smoothing_run_gets_a_file_of_its_own(tmp_path, write_run):
    runs = [write_run(tmp_path / name, "smoothing", name="a/dense") for name in "xy"]
    runs += [write_run(tmp_path / "z", "smoothing", name="sparse", sigma=0.5), write_run(tmp_path / "c", "clean")]
    names = table_names([read_evaluation(run) for run in runs])
    assert list(names) == [
        "a-dense-smoothing-cohen-1-sigma0.25.tsv",
        "a-dense-smoothing-cohen-1-sigma0.25~2.tsv",
        "sparse-smoothing-cohen-1-sigma0.5.tsv",
    ]
    with pytest.raises(LedgerError, match="--format tsv writes smoothing runs, and there is none"):
        table_names([read_evaluation(runs[-1])])


def test_what_we_write_is_what_we_read(tmp_path, write_run):
    run = read_evaluation(write_run(tmp_path / "run", "smoothing", wrong=[3], fails=[5], radius=0.123456789012345))
    (tmp_path / "table").write_text(table_text(run))
    found = read_table(f"{tmp_path / 'table'},{ABOUT}")
    kept = ("index", "label", "prediction", "radius", "abstain", "seconds")
    assert [{key: record[key] for key in kept} for record in found.records] == [
        {key: record[key] for key in kept} for record in run.records
    ]


def test_a_table_of_theirs_becomes_an_evaluation(table):
    found = read_table(table(*LINES, about=f"{ABOUT},samples=100000,n0=100,alpha=0.001,density=0.1,radii=0+0.25"))
    assert (found.protocol, found.precision, found.kind) == ("smoothing-imported@1", "imported", "smoothing")
    assert (str(found.images), found.checkpoint.name) == ("digits test, first 4 images", "resnet110")
    assert (found.checkpoint.density, found.checkpoint.bytes) == (0.1, None)
    assert tuple(found.settings["radii"]) == (0.0, 0.25)
    assert [record["seconds"] for record in found.records] == [12.5, 60.0, 90000.5, 7.25]
    assert [record["prediction"] for record in found.records] == [0, 2, -1, 0]
    assert [record["abstain"] for record in found.records] == [False, False, True, False]


@pytest.mark.parametrize(
    ("about", "protocol"),
    [
        ("", "smoothing-imported-resnet110@1"),
        (",samples=100000,alpha=0.001", "smoothing-imported-resnet110@1"),
        (",samples=10000,alpha=0.001,n0=64", "smoothing-imported-n0_64-n10000@1"),
        (",samples=100000,alpha=0.01,n0=100", "smoothing-imported-a0.01@1"),
    ],
)
def test_a_protocol_that_is_not_known_is_no_one_elses(table, about, protocol):
    assert read_table(table(*LINES, about=ABOUT + about)).protocol == protocol


def test_radii_of_few_digits_count_as_the_least_that_rounds_to_them(table):
    """Three significant digits: 0.25 may be 0.2495, below the radius 0.25; 0.526 is at least 0.5255."""
    records = read_table(table(*LINES)).records
    assert [record["radius"] for record in records] == pytest.approx([0.3095, 0.5255, 0.0, 0.2495])


@given(radius=st.floats(0.001, 4))
def test_rounding_never_makes_a_radius_grow(radius):
    for style, digits, decimals in (("%.3g", 3, 3), ("%.4f", 4, 4), ("%.4f", 5, 4)):
        assert least_radius(float(style % radius), digits, decimals) <= radius * (1 + 1e-12)
        assert least_radius(float(style % radius), digits, decimals) > radius * 0.99 - 1e-3
    assert least_radius(radius, 17, 16) == radius


@pytest.mark.parametrize(
    ("indices", "heading"),
    [
        ((0, 1, 2, 3), "digits test, first 4 images"),
        ((0, 20, 40, 60), "digits test, 4 images (1 in 20 from 0)"),
        ((7, 27, 47), "digits test, 3 images (1 in 20 from 7)"),
        ((0, 20, 60), "digits test, 3 images (3 of 0..60, list 3b86183a)"),
        ((5,), "digits test, 1 image (1 of 5..5, list ef2d127d)"),
    ],
)
def test_short_files_and_steps_are_selections_of_their_own(table, indices, heading):
    """The hash is the beginning of that of "0,20,60", or "5", by sha256sum."""
    lines = [f"{index}\t1\t1\t0.3\t1\t0:00:01" for index in reversed(indices)]
    assert str(read_table(table(*lines)).images) == heading


def test_imports_share_no_column_with_runs_other_sigmas_or_other_selections(tmp_path, table, write_run):
    full = f"{ABOUT},samples=100000,n0=100,alpha=0.001"
    ten = [f"{index}\t{index % 3}\t{index % 3}\t0.3\t1\t0:00:01" for index in range(10)]
    texts = [
        table(*ten, about=full, name="same"),
        table(*ten, about=full.replace("resnet110", "other"), name="comparable"),
        table(*ten, about=full.replace("0.25", "0.5"), name="sigma"),
        table(*ten[:-1], about=full, name="short"),
        table(*ten[::2], about=full, name="step"),
        table(*ten, about=ABOUT.replace("resnet110", "unknown"), name="unknown"),
    ]
    board = build_leaderboard([write_run(tmp_path / "run", "smoothing")], [read_table(text) for text in texts])
    rows = {row.label: set(row.cells) for row in board.rows}
    assert rows["other"] < rows["resnet110"]
    for a, b in (("dense", "resnet110"), ("dense", "unknown"), ("resnet110", "unknown")):
        assert not rows[a] & rows[b]
    assert len({column.images for column in rows["resnet110"]}) == 2
    assert len({column.sigma for column in rows["resnet110"]}) == 2
    titles = headings(board)
    assert len(set(titles.values())) == len(board.columns)
    assert any("n=5 (1 in 2 from 0), imported" in title for title in titles.values())


def test_a_report_says_what_it_does_not_know_of_imports(tmp_path, table, write_run):
    imported = read_table(table(*LINES))
    board = build_leaderboard([write_run(tmp_path / "run", "smoothing")], [imported])
    note = next(note for note in notes(board) if note.startswith("Imported: resnet110. "))
    assert "no hashes of the pixels" in note
    assert "| resnet110 | – | unknown | unknown | – | – | – |" in markdown(board)
    assert board.rows[-1].checkpoint.density is None
    assert "resnet110,imported:resnet110,digits,test,first,4,imported," in csv_text(board)
    assert summary_json(board)["networks"][-1]["bytes"] is None
    assert rich_tables(board, 130)[0].row_count == 2
    alone = build_leaderboard([], [imported])
    assert "| checkpoint | rank | arch | objective | smoothing" in markdown(alone)  # no empty columns
    assert {"density", "size\nnonzero"}.isdisjoint(str(column.header) for column in rich_tables(alone, 130)[0].columns)
    assert not any("α" in part for part in notes(alone))
    assert not any("Imported" in part for part in notes(build_leaderboard([write_run(tmp_path / "b", "smoothing")])))


@pytest.mark.parametrize("reverse", [False, True])
def test_labels_that_disagree_with_a_ledger_of_the_same_images_are_refused(tmp_path, table, write_run, reverse):
    """Ours has label index % 3; imports are compared with ledgers and with each other."""
    runs = [write_run(tmp_path / "run", "smoothing")]
    wrong = read_table(table(*LINES[:3], "3\t1\t1\t0.25\t1\t0", name="wrong"))
    right = read_table(table(*LINES, name="right"))
    assert len(build_leaderboard(runs, [right]).rows) == 2
    for ledgers, imports in ((runs, [wrong]), ([], [wrong, right][:: -1 if reverse else 1])):
        with pytest.raises(LedgerError, match="hold different labels for image 3 of digits test"):
            build_leaderboard(ledgers, imports)


def test_more_columns_other_line_ends_and_blank_lines_are_passed_over(tmp_path):
    path = tmp_path / "table.tsv"
    rows = [HEAD + "\tsamples", "0\t1\t1\t0.3\t1\t0:00:01\t1000", "", ""]
    path.write_bytes("﻿".encode() + "\r\n".join(rows).encode())
    (record,) = read_table(f"{path},{ABOUT}").records
    assert (record["label"], record["radius"]) == (1, pytest.approx(0.25))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3\t0\t0\tnan\t1\t0", "line 6: radius is 'nan', which should be a number, at least 0"),
        ("3\t0\t0\t-0.1\t1\t0", "line 6: radius is '-0.1', which should be"),
        ("3\t0\t0\t1e999\t1\t0", "line 6: radius is '1e999', which is not finite"),
        ("3\t0\t-1\t0.2\t0\t0", "line 6: predict is -1, an abstention, but radius is 0.2"),
        ("3\t0\t1\t0.2\t1\t0", "line 6: correct is 1, but predict is 1 and label 0"),
        ("3\t0\t0\t0.2\t2\t0", "line 6: correct is 2, but predict is 0 and label 0"),
        ("3\tcat\t0\t0.2\t0\t0", "line 6: label is 'cat', which should be a whole number from 0 on"),
        ("3\t0\t-2\t0.2\t0\t0", "line 6: predict is '-2', which should be a whole number from -1 on"),
        ("3.5\t0\t0\t0.2\t1\t0", "line 6: idx is '3.5', which should be"),
        ("3\t0\t0\t0.2\t1\tsoon", "line 6: time is 'soon', which should be H:MM:SS or a number of seconds"),
        ("3\t0\t0\t0.2\t1", "line 6: has 5 fields, the first line names 6"),
        ("1\t1\t1\t0.2\t1\t0", "line 6: idx 1 stands on line 3 already; correct"),
        ("1\t2\t2\t0.2\t1\t0", "line 6: idx 1 stands on line 3 already, with another label; correct"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(table, line, message):
    with pytest.raises(LedgerError) as refused:
        read_table(table(*LINES[:3], "", line))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("idx\tlabel\tpredict\tbasePredict\tcorrect\ttime", "is a log of attacks, which certifies nothing"),
        ("0\t0\t0\t0.31\t1\t0", "line 1, .* lacks idx label predict"),
    ],
)
def test_a_file_of_another_kind_is_refused(table, head, message):
    with pytest.raises(LedgerError, match=message):
        read_table(table(*LINES, head=head))


def test_files_that_are_empty_or_not_there_are_refused(tmp_path, table):
    with pytest.raises(LedgerError, match="holds no line with an image"):
        read_table(table())
    with pytest.raises(LedgerError, match="cannot be read as a table"):
        read_table(f"{tmp_path / 'nowhere'},{ABOUT}")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("name=a,dataset=digits", r"sigma: is required.*; write for example --import cohen .*,sigma=0\.25"),
        ("name=a,dataset=digits,sigma=wide", "sigma: .*'wide'"),
        (f"{ABOUT},sgima=1", "sgima: unknown key"),
        (f"{ABOUT},alpha=1", "alpha: "),
        (f"{ABOUT},density=90", "fraction of weights kept"),
    ],
)
def test_what_the_table_does_not_say_must_be_said(table, about, message):
    with pytest.raises(ConfigError, match=message):
        read_table(table(*LINES, about=about))


def test_a_path_may_hold_commas(table):
    assert len(read_table(table(*LINES, name="a,b,c")).records) == 4
