"""What makes a row, what makes a column, and what must never share one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrabench.errors import GateError, LedgerError
from hydrabench.reporting import build_leaderboard, clopper_pearson, csv_text, markdown, summary_json, wilson
from hydrabench.reporting.legend import headings


def keys(board):
    return [column.key.removeprefix("digits:test:10:float32:") for column in board.columns]


def refusal(*runs):
    with pytest.raises(LedgerError) as caught:
        build_leaderboard(runs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_run):
    """Two checkpoints; clean, attacked, verified, certified: images 8, 9 are wrong, then 7 falls, then 6."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for name in ("dense", "sparse"):
        found += [
            write_run(folder / name / "pgd", "pgd", name=name, wrong=[8, 9], fails=[7]),
            write_run(folder / name / "crown", "crown-ibp", name=name, wrong=[8, 9], fails=[6, 7]),
            write_run(folder / name / "smoothing", "smoothing", name=name, fails=[0], radius=0.3),
        ]
    return [*found, write_run(folder / "dense" / "aa", "autoattack", wrong=[8, 9], fails=[7])]


def test_rows_columns_and_numbers_worked_by_hand(runs):
    board = build_leaderboard(runs)
    assert keys(board) == [
        "clean@1::clean_accuracy",
        "pgd-50@1:linf=8/255:robust_accuracy",
        "aa-standard@2:linf=8/255:robust_accuracy",
        "crown-ibp@1:linf=8/255:verified_accuracy",
        "sandwich@1:linf=8/255:undecided",
        "smoothing-cohen@1:sigma=0.25:certified_accuracy@0.25",
        "smoothing-cohen@1:sigma=0.25:certified_accuracy@0.5",
        "smoothing-cohen@1:sigma=0.25:average_certified_radius",
    ]
    dense, sparse = board.rows
    assert [row.checkpoint.name for row in board.rows] == ["dense", "sparse"]
    clean, pgd, aa, crown, gap, at_quarter, at_half, radius = board.columns
    assert dense.cells[clean] == wilson(8, 10)
    assert dense.cells[pgd] == dense.cells[aa] == wilson(7, 10)
    assert dense.cells[crown] == clopper_pearson(6, 10)
    assert dense.cells[gap] == wilson(1, 10)  # image 6: not verified, not broken
    assert (dense.cells[at_quarter], dense.cells[at_half]) == (clopper_pearson(9, 10), clopper_pearson(0, 10))
    assert dense.cells[radius].value == pytest.approx(0.27)  # nine times 0.3, and one abstention
    assert aa not in sparse.cells


def test_verified_is_at_most_robust_is_at_most_clean_in_every_row(runs):
    board = build_leaderboard(runs)
    metrics = [column.metric for column in board.columns]
    for row in board.rows:
        cells = {column.metric: row.cells[column].value for column in board.columns if column in row.cells}
        assert cells["verified_accuracy"] < cells["robust_accuracy"] < cells["clean_accuracy"]
    assert metrics.count("clean_accuracy") == 1


@settings(max_examples=10)
@given(data=st.data())
def test_the_order_in_which_runs_are_given_makes_no_difference(runs, data):
    shuffled = build_leaderboard(data.draw(st.permutations(runs)))
    board = build_leaderboard(runs)
    assert shuffled == board
    assert (markdown(shuffled), csv_text(shuffled)) == (markdown(board), csv_text(board))
    assert summary_json(shuffled) == summary_json(board)


DIFFERENT = {
    "protocol": ("pgd", {"steps": 100}),
    "radius": ("pgd", {"epsilon": "4/255", "fails": []}),
    "norm": ("pgd", {"norm": "l2", "epsilon": "0.5"}),
    "precision": ("pgd", {"header": {"precision": "float64"}}),
    "split": ("pgd", {"header": {"dataset": {"name": "digits", "split": "validation", "n": 10}}}),
    "data set": ("pgd", {"header": {"dataset": {"name": "cifar10", "split": "test", "n": 10}}}),
    "sigma": ("smoothing", {"sigma": 0.5}),
    "number of draws": ("smoothing", {"samples": 1000}),
}


@pytest.mark.parametrize(("kind", "change"), DIFFERENT.values(), ids=DIFFERENT)
def test_numbers_made_differently_never_share_a_column(tmp_path, write_run, kind, change):
    first = write_run(tmp_path / "a", kind)
    second = write_run(tmp_path / "b", kind, name="sparse", **change)
    board = build_leaderboard([first, second])
    shared = [column for column in board.columns if all(column in row.cells for row in board.rows)]
    assert {column.metric for column in shared} <= {"clean_accuracy"}
    assert all(set(row.cells) - set(shared) for row in board.rows)
    titles = headings(board)
    assert len(set(titles.values())) == len(titles)


def test_a_radius_written_otherwise_is_the_same_column(tmp_path, write_run):
    first = write_run(tmp_path / "a", "pgd", epsilon="0.1")
    second = write_run(tmp_path / "b", "pgd", name="sparse", epsilon="1/10")
    assert keys(build_leaderboard([first, second])) == ["clean@1::clean_accuracy", "pgd-50@1:linf=0.1:robust_accuracy"]


def test_columns_are_sorted_for_reading(tmp_path, write_run):
    """Selections apart; clean, robust, verified, certified; L∞ before L2; small radii first; IBP before CROWN-IBP."""
    few = {"dataset": {"name": "digits", "split": "test", "n": 5}}
    runs = [
        write_run(tmp_path / "0", "smoothing", radii=[0.0, 0.5, 1.0], header=few),
        write_run(tmp_path / "1", "crown-ibp", epsilon="2/255"),
        write_run(tmp_path / "2", "ibp", epsilon="2/255"),
        write_run(tmp_path / "3", "pgd", norm="l2", epsilon="0.1"),
        write_run(tmp_path / "4", "pgd", epsilon="10/255"),
        write_run(tmp_path / "5", "pgd", epsilon="8/255"),
    ]
    assert list(headings(build_leaderboard(runs)).values()) == [
        "clean (n=10)",
        "PGD-50 L∞ 8/255 (n=10)",
        "PGD-50 L∞ 10/255 (n=10)",
        "PGD-50 L2 0.1 (n=10)",
        "IBP L∞ 2/255 (n=10)",
        "CROWN-IBP L∞ 2/255 (n=10)",
        "smoothing σ=0.25 r=0 (n=5)",
        "smoothing σ=0.25 r=0.5 (n=5)",
        "smoothing σ=0.25 r=1 (n=5)",
        "smoothing σ=0.25 mean radius (n=5)",
    ]


def test_rows_go_from_dense_to_sparse_and_then_by_name(tmp_path, write_run):
    names = ["b-sparse", "z", "a-sparse", "c"]
    board = build_leaderboard([write_run(tmp_path / name, "clean", name=name) for name in names])
    assert [row.label for row in board.rows] == ["c", "z", "a-sparse", "b-sparse"]


def test_checkpoints_of_one_name_are_told_apart_by_their_hash(tmp_path, write_run):
    first, second = write_run(tmp_path / "a", "pgd"), write_run(tmp_path / "b", "pgd")
    second.header["checkpoint"]["sha256"] = "f" * 64
    labels = [row.label for row in build_leaderboard([first, second]).rows]
    assert labels == [f"dense ({first.header['checkpoint']['sha256'][:8]})", "dense (ffffffff)"]


def test_one_checkpoint_under_two_names_is_one_row(tmp_path, write_run):
    first, second = write_run(tmp_path / "a", "pgd"), write_run(tmp_path / "b", "ibp")
    second.header["checkpoint"]["name"] = "copy"
    (row,) = build_leaderboard([first, second]).rows
    assert (row.label, len(row.cells)) == ("copy", 4)


def test_the_same_run_twice_is_counted_once(tmp_path, write_run):
    first = write_run(tmp_path / "a", "pgd", fails=[1])
    second = write_run(tmp_path / "b", "pgd", fails=[1])
    assert build_leaderboard([first, second]) == build_leaderboard([first])


@pytest.mark.parametrize("kind", ["pgd", "autoattack", "ibp", "smoothing"])
def test_different_verdicts_in_one_cell_are_refused(tmp_path, write_run, kind):
    first = write_run(tmp_path / "a", kind, fails=[1])
    second = write_run(tmp_path / "b", kind, fails=[2])
    message = refusal(first, second)
    assert f"{first.path} and {second.path} give checkpoint dense different verdicts under" in message
    assert "on images 1, 2; report only one of them" in message


def test_different_certified_radii_are_different_verdicts_even_if_no_column_sees_it(tmp_path, write_run):
    """Radii 0.30 and 0.31 are the same at R = 0.25 and 0.5, but not in the mean."""
    runs = write_run(tmp_path / "a", "smoothing", radius=0.30), write_run(tmp_path / "b", "smoothing", radius=0.31)
    assert "(average_certified_radius)" in refusal(*runs)


def test_contradictory_clean_predictions_are_refused_naming_the_images(tmp_path, write_run):
    first = write_run(tmp_path / "a", "pgd", wrong=[2, 5])
    second = write_run(tmp_path / "b", "autoattack", wrong=[5, 9])
    message = refusal(second, first)
    assert f"{first.path} and {second.path} hold contradictory clean predictions of checkpoint dense" in message
    assert "on images 2, 9;" in message


def test_two_wrong_predictions_must_be_the_same_wrong_prediction(tmp_path, write_run):
    def mistake_otherwise(records):
        return [replace(record, prediction=7) if record.index == 5 else record for record in records]

    first = write_run(tmp_path / "a", "pgd", wrong=[5])
    assert "on image 5;" in refusal(first, write_run(tmp_path / "b", "ibp", wrong=[5], edit=mistake_otherwise))


def test_predictions_are_compared_where_selections_overlap(tmp_path, write_run):
    few = {"dataset": {"name": "digits", "split": "test", "n": 5}}
    first = write_run(tmp_path / "a", "pgd", wrong=[2])
    assert "on image 2;" in refusal(first, write_run(tmp_path / "b", "pgd", header=few))
    board = build_leaderboard([first, write_run(tmp_path / "c", "pgd", header=few, wrong=[2])])
    assert [column.images.n for column in board.columns] == [10, 10]


@pytest.fixture
def nested(tmp_path, write_run):
    """An attack on one network with 10 images, and on another with 5; images 2 and 7 fall."""
    few = {"dataset": {"name": "digits", "split": "test", "n": 5}}
    return [
        write_run(tmp_path / "a", "pgd", fails=[2, 7]),
        write_run(tmp_path / "b", "pgd", name="sparse", fails=[2], header=few),
    ]


def test_networks_meet_on_the_images_that_all_of_them_have(nested):
    board = build_leaderboard(nested)
    assert [column.images.n for column in board.columns] == [5, 5]
    assert [row.cells[board.columns[1]] for row in board.rows] == [wilson(4, 5), wilson(4, 5)]


def test_a_number_of_images_may_be_asked_for(nested):
    board = build_leaderboard(nested, n=10)
    assert [row.label for row in board.rows] == ["dense"]
    assert board.rows[0].cells[board.columns[1]] == wilson(8, 10)
    assert [column.images.n for column in build_leaderboard(nested, n=3).columns] == [3, 3]
    with pytest.raises(LedgerError, match="no run has 11 images or more; choose a smaller --n"):
        build_leaderboard(nested, n=11)


def test_selections_of_another_size_may_have_columns_of_their_own(nested):
    board = build_leaderboard(nested, n="each")
    assert sorted(column.images.n for column in board.columns) == [5, 5, 10, 10]


def test_two_runs_of_a_network_must_agree_where_they_overlap(tmp_path, write_run):
    few = {"dataset": {"name": "digits", "split": "test", "n": 5}}
    first = write_run(tmp_path / "a", "pgd", fails=[2, 7])
    message = refusal(first, write_run(tmp_path / "b", "pgd", fails=[3], header=few))
    assert "different verdicts under pgd-50@1 (robust_accuracy) on images 2, 3;" in message


def test_every_image_is_verified_open_broken_or_wrong(runs):
    """Images 8, 9 are wrong, 7 is broken, 6 is neither broken nor verified."""
    parts = [layers.parts for layers in build_leaderboard(runs).sandwiches]
    assert parts == [{"verified": 6, "open": 1, "broken": 1, "wrong": 2}] * 2


def test_an_image_is_broken_if_any_attack_breaks_it_and_verified_if_any_bound_proves_it(tmp_path, write_run):
    runs = [
        write_run(tmp_path / "a", "pgd", fails=[0]),
        write_run(tmp_path / "b", "autoattack", fails=[0, 1]),
        write_run(tmp_path / "c", "ibp", fails=range(9)),
        write_run(tmp_path / "d", "crown-ibp", fails=[0, 1, 2, 3, 9]),
        write_run(tmp_path / "e", "pgd", epsilon="4/255", fails=[]),
    ]
    (layers,) = build_leaderboard(runs).sandwiches
    assert layers.parts == {"verified": 6, "open": 2, "broken": 2, "wrong": 0}


def test_a_smoothed_classifier_and_another_precision_may_predict_otherwise(tmp_path, write_run):
    runs = [
        write_run(tmp_path / "a", "pgd"),
        write_run(tmp_path / "b", "smoothing", wrong=[1]),
        write_run(tmp_path / "c", "pgd", wrong=[1], header={"precision": "float64"}),
    ]
    clean = [column.precision for column in build_leaderboard(runs).columns if column.metric == "clean_accuracy"]
    assert clean == ["float32", "float64"]


def test_a_protocol_id_with_other_settings_than_its_own_is_refused(tmp_path, write_run):
    run = write_run(tmp_path / "b", "pgd", steps=40, header={"protocol": "pgd-50@1"})
    assert "run.json: settings make the protocol pgd-40@1, not pgd-50@1; run the same command" in refusal(run)


def test_no_leaderboard_is_made_of_contradictions(tmp_path, write_run):
    runs = write_run(tmp_path / "a", "pgd", fails=[1]), write_run(tmp_path / "b", "ibp")
    with pytest.raises(GateError, match=r"image 1; one of the two is wrong, so no report is made"):
        build_leaderboard(runs)
