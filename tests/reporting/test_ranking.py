"""The order of rows, ranks, and the tables of comparisons."""

from __future__ import annotations

from functools import partial

import pytest

from hydrabench.errors import ConfigError
from hydrabench.reporting import build_leaderboard, markdown, ranking, summary_json
from hydrabench.reporting.columns import GROUPS
from hydrabench.reporting.paired import cochran_table, pairs, seeds, significance, twins
from hydrabench.reporting.ranking import PREFERRED, rank_text

FORTY = {"dataset": {"name": "digits", "split": "test", "n": 40}}


@pytest.fixture
def board(tmp_path, write_run):
    """PGD on 40 images: `best` holds on 36, `middle` on 34, `worst` on 8; clean accuracy ranks the other way round."""

    broken = {"best": range(4), "middle": range(6), "worst": range(4, 36)}
    runs = [write_run(tmp_path / name, "pgd", name=name, fails=fails, header=FORTY) for name, fails in broken.items()]
    return partial(build_leaderboard, runs)


def labels(board):
    return [row.label for row in board.rows]


def test_rows_stand_by_score_with_ranges_of_ranks(board):
    """best and middle differ on images 4 and 5 only: p = 0.5."""
    found = board()
    assert [(row.label, row.rank, row.group) for row in found.rows] == [
        ("best", (1, 2), "density 1"),
        ("middle", (1, 2), "density 1"),
        ("worst", (3, 3), "density 1"),
    ]
    assert found.score["digits"].metric == "robust_accuracy"
    assert "| worst | 3 | cnn_small" in markdown(found)
    assert "by PGD-50 L∞ 8/255" in markdown(found)


def test_another_column_may_rank(board):
    found = board(sort="clean")
    assert found.score["digits"].metric == "clean_accuracy"
    assert labels(found) == ["best", "middle", "worst"]  # equal scores: by name
    assert {row.rank for row in found.rows} == {(1, 3)}
    with pytest.raises(ConfigError, match="--sort 'speed' is part of no heading; the columns are clean, PGD-50"):
        board(sort="speed")


def test_groups_are_ranked_apart(tmp_path, write_run):
    runs = [
        write_run(tmp_path / name, "pgd", name=name, fails=fails, header=FORTY)
        for name, fails in {"dense": range(30), "sparse-a": range(20), "sparse-b": ()}.items()
    ]
    assert [(row.label, row.rank) for row in build_leaderboard(runs).rows] == [
        ("dense", (1, 1)),
        ("sparse-b", (1, 1)),
        ("sparse-a", (2, 2)),
    ]
    assert labels(build_leaderboard(runs, group_by="dataset")) == ["sparse-b", "sparse-a", "dense"]
    assert {row.group for row in build_leaderboard(runs, group_by="arch").rows} == {"arch cnn_small"}
    with pytest.raises(ConfigError, match="unknown grouping 'size'"):
        build_leaderboard(runs, group_by="size")


def test_a_row_without_the_score_has_no_rank_and_stands_last(tmp_path, write_run):
    runs = [write_run(tmp_path / name, "pgd", name=name) for name in ("b", "c")]
    found = build_leaderboard([*runs, write_run(tmp_path / "a", "ibp", name="a")])
    assert [(row.label, row.rank) for row in found.rows] == [("b", (1, 2)), ("c", (1, 2)), ("a", None)]


def test_every_group_of_columns_may_rank():
    assert set(PREFERRED) == set(GROUPS.values()) - {"open"}


def test_ranks_are_short():
    assert [rank_text(rank) for rank in ((1, 1), (2, 4), None)] == ["1", "2–4", "–"]


@pytest.fixture
def pruned(tmp_path, write_run):
    """HYDRA and LWM at density 0.1, seeds 0 and 1: HYDRA holds on 38 or 36 of 40 images, LWM on 20."""

    def make(name, phase, seed, fails):
        run = write_run(
            tmp_path / name, "pgd", name=name, fails=fails, header={**FORTY, "origin": {"recipe": "r", "seed": seed}}
        )
        run.header["checkpoint"]["phase"] = phase
        return run

    return [
        make("sparse-0", "finetune", 0, range(2)),
        make("sparse-1", "finetune", 1, range(4)),
        make("sparse-lwm-0", "lwm", 0, range(20)),
        make("sparse-lwm-1", "lwm", 1, range(20, 40)),
    ]


def test_hydra_and_lwm_are_compared_where_both_are_there(pruned):
    """Seed 0: HYDRA alone holds on images 2 to 19, 18 of them; p = 2 / 2^18, and twice that after Holm."""
    found = twins(build_leaderboard(pruned))
    assert found["first"].tolist() == ["sparse-0", "sparse-1"]
    assert found["second"].tolist() == ["sparse-lwm-0", "sparse-lwm-1"]
    first = found.iloc[0]
    assert (first["both"], first["first_only"], first["second_only"], first["neither"]) == (20, 18, 0, 2)
    assert first["difference"] == pytest.approx(18 / 40)
    assert first["low"] < first["difference"] < first["high"]
    assert (first["p"], first["p_holm"]) == (pytest.approx(2 / 2**18), pytest.approx(4 / 2**18))
    text = markdown(build_leaderboard(pruned))
    assert "| sparse-0 | sparse-lwm-0 | PGD-50 L∞ 8/255 | 95.0 | 50.0 | +45.0 |" in text
    assert "for the family of these 2 tests." in text
    assert "HYDRA" not in markdown(build_leaderboard(pruned[:2]))


def test_every_pair_of_a_group_is_in_one_family(pruned):
    board = build_leaderboard(pruned)
    found = pairs(board)
    assert len(found) == board.tests == 6
    assert (found["p_holm"] >= found["p"]).all()
    assert significance(board).groupby("family").size().to_dict() == {"hydra-lwm": 2, "ranks": 6}
    assert len(summary_json(board)["significance"]) == 8
    (group,) = cochran_table(board).to_dict("records")
    assert (group["networks"], group["df"], group["n"]) == (4, 3, 40)
    assert group["p"] < 1e-4


def test_seeds_are_an_axis_of_their_own(pruned):
    """Student's t of 95 % and 90 %: 92.5 ± 12.706 · 2.5 points, cut at 100."""
    found = seeds(build_leaderboard(pruned)).set_index(["networks", "column"])
    row = found.loc[("sparse-0, sparse-1", "PGD-50 L∞ 8/255")]
    assert (row["seeds"], row["mean"], row["worst"], row["high"]) == (2, pytest.approx(0.925), 0.9, 1)
    assert row["low"] == pytest.approx(0.925 - 12.7062 * 0.025, abs=1e-5)
    assert not len(seeds(build_leaderboard(pruned[::2])))


def test_a_network_whose_epoch_the_test_images_chose_has_a_dagger(tmp_path, write_run):
    text = markdown(build_leaderboard([write_run(tmp_path / "a", "pgd", header={"origin": {"selection": "test"}})]))
    assert "| dense † |" in text
    assert "- † The test images chose the epoch" in text


def test_a_group_of_networks_whose_density_nobody_said_is_called_unknown():
    assert [ranking._text(value) for value in (1.0, 0.05, "trades", None)] == ["1", "0.05", "trades", "unknown"]
