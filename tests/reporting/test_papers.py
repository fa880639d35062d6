"""Numbers from papers: read from YAML, shown beside ours in columns of their own, tested against nothing."""

from __future__ import annotations

import pytest

from hydrabench.errors import ConfigError, LedgerError
from hydrabench.reporting import build_leaderboard, csv_text, markdown, rich_tables, summary_json
from hydrabench.reporting.external import ExternalNumber, ExternalRow
from hydrabench.reporting.legend import headings, notes
from hydrabench.reporting.papers import read_papers
from hydrabench.reporting.published import published_cells

PAPER = """
source: "Somebody et al. (2020), table 1"
dataset: digits
networks:
  - name: theirs
    arch: vgg16_bn
    density: 0.1
    additional_data: true
    notes: ["The attack was not adaptive"]
    numbers:
      - {metric: clean_accuracy, value: 88.9%}
      - {metric: robust_accuracy, value: 55.6 %, protocol: PGD-50, epsilon: 8/255, n: 10}
      - {metric: certified_accuracy@0.25, value: 0.43, sigma: 0.25, n: 500}
      - {metric: average_certified_radius, value: 0.512, sigma: 0.25}
"""


@pytest.fixture
def paper(tmp_path):
    def write(text=PAPER):
        (tmp_path / "paper.yml").write_text(text)
        return str(tmp_path / "paper.yml")

    return write


def test_a_paper_is_read_with_all_that_it_says(paper):
    (row,) = read_papers(paper()).rows
    assert (row.name, row.source, row.dataset, row.density) == (
        "theirs",
        "Somebody et al. (2020), table 1",
        "digits",
        0.1,
    )
    clean, robust, certified, mean = row.numbers
    assert (clean.value, clean.n, clean.threat) == (0.889, None, None)
    assert (robust.value, robust.protocol, str(robust.threat)) == (0.556, "PGD-50", "L∞ 8/255")
    assert (certified.radius, certified.sigma, mean.value) == (0.25, 0.25, 0.512)


def test_published_numbers_stand_in_columns_of_their_own(tmp_path, write_run, paper):
    """Same data set, n, method and radius as our run: still no column in common, and no ledger behind it."""
    rows = read_papers(paper()).rows
    board = build_leaderboard([write_run(tmp_path / "run", "pgd")], external=rows)
    ours, theirs = (next(row for row in board.rows if row.label == label) for label in ("dense", "theirs"))
    assert not set(ours.cells) & set(theirs.cells)
    assert {column.group for column in theirs.cells} == {"clean", "attacked", "certified"}
    assert not any(sha == theirs.checkpoint.sha256 for sha, _ in board.cells)
    names = headings(board)
    assert {names[column].partition(" (")[0] for column in theirs.cells} >= {"published clean", "PGD-50 L∞ 8/255"}
    assert len(set(names.values())) == len(board.columns)


def test_every_format_shows_the_number_and_no_interval_that_nobody_knows(tmp_path, write_run, paper):
    board = build_leaderboard([write_run(tmp_path / "run", "pgd")], external=read_papers(paper()).rows)
    text = markdown(board)
    assert "| 88.9 |" in text
    assert "| 0.512 |" in text
    assert "Published numbers of theirs: Somebody et al. (2020), table 1." in text
    assert "theirs: The attack was not adaptive" in notes(board)
    (clean,) = [one for one in summary_json(board)["numbers"] if one["network"] == "theirs" and one["group"] == "clean"]
    assert (clean["value"], clean["low"], clean["high"], clean["seconds"]) == (0.889, None, None, None)
    assert "theirs,imported:theirs,digits,test," in csv_text(board)
    assert rich_tables(board, 80)


def test_a_number_of_known_images_has_the_interval_of_these_images(paper):
    (row,) = read_papers(paper()).rows
    ((_, cells),) = published_cells([row]).values()
    found = {column.metric: estimate for column, estimate in cells.items()}
    certified = found["certified_accuracy@0.25"]
    assert (certified.value, certified.count, certified.n, certified.method) == (0.43, 215, 500, "wilson")
    assert certified.low < 0.43 < certified.high
    assert found["robust_accuracy"].low <= 0.556 <= found["robust_accuracy"].high


def test_published_numbers_alone_make_a_report(paper):
    board = build_leaderboard([], external=read_papers(paper()).rows)
    assert [row.label for row in board.rows] == ["theirs"]
    assert "88.9" in markdown(board)


def test_two_sources_that_contradict_each_other_are_refused():
    rows = [ExternalRow("a", source, "digits", (ExternalNumber("clean_accuracy", value),)) for source, value in
            (("one", 0.9), ("two", 0.8))]  # fmt: skip
    with pytest.raises(LedgerError, match=r"one and two give a different values of clean_accuracy \(published\)"):
        published_cells(rows)
    assert len(published_cells([rows[0], rows[0]])) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("88.9%", "88.9", r"clean_accuracy is 88\.9, outside \[0, 1\]; write 88\.9% or 0\.889"),
        ("88.9%", "188.9%", r"outside \[0, 1\]"),
        ("88.9%", "high", "networks.0.numbers.0.value: "),
        ("clean_accuracy", "accuracy", "metric: is 'accuracy'; write clean_accuracy, robust_accuracy"),
        ("source:", "sauce:", "sauce: unknown key, did you mean 'source'"),
        ("density: 0.1", "density: 90", "fraction of weights kept"),
        ("epsilon: 8/255", "epsilon: 8", "epsilon"),
        ("dataset: digits\n", "", "dataset: is required"),
    ],
)
def test_what_is_wrong_in_a_paper_is_named(paper, old, new, message):
    with pytest.raises(ConfigError, match=message) as refused:
        read_papers(paper(PAPER.replace(old, new)))
    assert "paper.yml" in str(refused.value)


def test_a_paper_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(LedgerError, match=r"none.yml cannot be read as numbers of a paper: No such file"):
        read_papers(str(tmp_path / "none.yml"))
