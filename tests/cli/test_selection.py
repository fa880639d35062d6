"""--skip and --ids: the chosen images are in run.json, in the column, and equal to those of an imported table."""

from __future__ import annotations

import json

from hydrabench.ledger import read_run
from hydrabench.reporting.cohen_import import read_tables
from hydrabench.reporting.evaluations import read_evaluation

SMOOTHED = ("certify", "--method", "smoothing", "--n0", 4, "--samples", 20, "--sigma", "1/4")


def test_every_hundredth_image_is_the_selection_of_a_table_of_cohens(hydrabench, here):
    done = hydrabench(*SMOOTHED, "--ckpt", "digits-trades-95", "--skip", 100, "--out", "mine")
    assert done.exit_code == 0, done.output
    described = json.loads((here / "mine" / "run.json").read_text())["dataset"]
    known = {"name": "digits", "split": "test", "n": 5, "chosen": "1 in 100 from 0", "first": 0, "step": 100}
    assert described.items() >= known.items()
    records = [json.loads(line) for line in (here / "mine" / "records.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == [0, 100, 200, 300, 400]
    assert hydrabench("report", "mine", "--out", "report", "--format", "tsv", "--format", "md").exit_code == 0
    assert "(1 in 100 from 0)" in (here / "report" / "leaderboard.md").read_text()
    (table,) = (here / "report").glob("*.tsv")
    (imported,) = read_tables(f"{table},name=theirs,dataset=digits,sigma=0.25").evaluations
    mine = read_evaluation(read_run(here / "mine"))
    assert imported.images == mine.images
    assert [record["index"] for record in imported.records] == [record["index"] for record in mine.records]


def test_a_list_of_images_is_a_sample_and_goes_on_with_resume(hydrabench, here):
    (here / "ids.txt").write_text("40\n7\n3\n499\n")
    attack = ("attack", "--attack", "clean", "--ckpt", "digits-trades-95", "--ids", "ids.txt", "--out", "run")
    assert hydrabench(*attack).exit_code == 0
    assert json.loads((here / "run" / "run.json").read_text())["dataset"]["images"] == [3, 7, 40, 499]
    assert hydrabench(*attack, "--resume").exit_code == 0
    assert hydrabench("report", "run", "--out", "report").exit_code == 0
    assert "4 of 3..499, list " in (here / "report" / "leaderboard.csv").read_text()
    (here / "ids.txt").write_text("40\n7\n3\n498\n")
    other = hydrabench(*attack, "--resume")
    assert other.exit_code == 1
    assert "cannot resume run: dataset.chosen was" in other.stderr


def test_an_altered_selection_is_refused(hydrabench, here):
    assert hydrabench("attack", "--attack", "clean", "--ckpt", "digits-trades-95", "--skip", 100, "--out", "run")
    header = json.loads((here / "run" / "run.json").read_text())
    for change in ({"step": 50}, {"n": 10**12}, {"chosen": ""}):
        altered = {**header, "dataset": {**header["dataset"], **change}}
        (here / "run" / "run.json").write_text(json.dumps(altered))
        refused = hydrabench("report", "run", "--out", "report")
        assert refused.exit_code == 1
        assert refused.stderr.startswith("error: run/run.json: dataset.")
