"""The leaderboard on a terminal: whole names while there is room, and how networks differ."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hydrabench.reporting import build_leaderboard, comparison_lines, rich_tables, summary_json
from hydrabench.reporting.tables import MOST_COMPARISONS

LONG = "runs/of-a-long-evening/digits-trades/finetune"


def names_in(board, width):
    """The lines of the names in the tables, and the width that the tables take."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*rich_tables(board, width))
    lines = console.export_text().splitlines()
    start = next(line for line in lines if "checkpoint" in line).index("checkpoint")
    found = [line[start:].split(" ")[0] for line in lines]
    return [name for name in found if "/" in name or name == "finetune"], max(map(len, lines))


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (100, ["runs/tuned", LONG]),
        (76, ["runs/tuned", "runs/of-a-long-evening/", "digits-trades/finetune"]),
        (65, ["runs/tuned", "runs/", "of-a-long-evening/", "digits-trades/", "finetune"]),
    ],
)
def test_names_are_broken_only_where_there_is_no_room(width, shown, tmp_path, write_run):
    runs = [write_run(tmp_path / str(number), "pgd", name=name) for number, name in enumerate((LONG, "runs/tuned"))]
    names, taken = names_in(build_leaderboard(runs), width)
    assert sorted(names) == sorted(shown)
    assert taken <= width


def test_a_line_for_each_comparison_says_what_json_says(tmp_path, write_run):
    """Images 1 to 8 hold for the first network alone, image 9 for the second: p = 2 (1 + 9) / 2^9 = 0.039."""
    runs = [
        write_run(tmp_path / "a", "pgd", name="good", fails=[9]),
        write_run(tmp_path / "b", "pgd", name="poor", fails=range(1, 9)),
    ]
    board = build_leaderboard(runs)
    (one,) = summary_json(board)["significance"]
    title, line = comparison_lines(board)
    assert "McNemar" in title
    ends = f"[{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
    assert line == f"  good - poor, PGD-50 L∞ 8/255: +70.0 {ends}, p = 0.039"
    assert comparison_lines(build_leaderboard(runs[:1])) == []


def test_many_comparisons_are_cut_and_counted(tmp_path, write_run):
    runs = [write_run(tmp_path / name, "pgd", name=name) for name in "abcdef"]
    _, *lines = comparison_lines(build_leaderboard(runs))
    assert len(lines) == MOST_COMPARISONS + 1
    assert lines[-1] == "  and 5 more, see significance in --json"  # of 15 pairs
