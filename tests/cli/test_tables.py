"""Cohen's tables from the command line: written by one report, read by the next."""

from __future__ import annotations

import pytest

FEW = ("--method", "smoothing", "--sigma", 0.25, "--n0", 5, "--samples", 100, "--radii", "0,0.1", "-n", 6)


@pytest.fixture
def run(here, hydrabench):
    result = hydrabench("certify", "--ckpt", "digits-trades", *FEW, "--out", "runs/dense")
    assert result.exit_code == 0, result.stderr
    return "runs/dense"


def test_a_table_is_written_and_comes_back_beside_the_run_it_was_made_from(here, hydrabench, run):
    result = hydrabench("report", run, "--out", "tables", "--format", "tsv")
    assert result.exit_code == 0, result.stderr
    (table,) = (here / "tables").iterdir()
    assert table.name.endswith("smoothing-cohen-n0_5-n100-4-sigma0.25.tsv")
    imported = f"{table},name=theirs,dataset=digits,sigma=0.25,radii=0+0.1"
    result = hydrabench("report", run, "--import", "cohen", imported, "--out", "both")
    assert result.exit_code == 0, result.stderr
    text = (here / "both" / "leaderboard.md").read_text()
    ours, theirs = (next(line for line in text.splitlines() if line.startswith(f"| {name}")) for name in ("dig", "the"))
    cells = [[cell.strip() for cell in line.split("|")[-7:-1]] for line in (ours, theirs)]
    assert [cell for cell in cells[0] if cell != "–"] == [cell for cell in cells[1] if cell != "–"]
    assert all("–" in pair for pair in zip(*cells, strict=True)), "a column is shared"
    alone = hydrabench("report", "--import", "cohen", imported, "--out", "alone")
    assert alone.exit_code == 0, alone.stderr
    assert not (here / "alone" / "theirs.tsv").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ("--import", "robust", "x"),
            1,
            "unknown import 'robust'; did you mean 'robustbench'?",
        ),
        (("--import", "cohen", "x,name=a,dataset=digits,sigma=0.25"), 1, "error: x cannot be read as a table"),
        ((), 2, "Missing argument 'RUNS...'"),
    ],
)
def test_imports_that_cannot_be_read_leave_no_report(here, hydrabench, words, code, message):
    result = hydrabench("report", *words, "--out", "report")
    assert result.exit_code == code
    assert message in result.stderr
    assert not (here / "report").exists()
