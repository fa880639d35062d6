"""report as a function: the table says what the written report says."""

from __future__ import annotations

import pytest

import hydrabench as hb
from hydrabench.errors import GateError, LedgerError

NUMBERS = ("clean", "PGD-2 L∞ 8/255", "CROWN-IBP L∞ 8/255", "open L∞ 8/255")


@pytest.fixture(scope="module")
def runs():
    x_y = "digits"
    return [
        hb.attack("digits-trades-95", x_y, epsilon="8/255", steps=2, n=20, device="cpu"),
        hb.certify("digits-trades-95", x_y, epsilon="8/255", n=20, device="cpu"),
        hb.attack("digits-crown-ibp-99", x_y, epsilon="8/255", steps=2, n=20, device="cpu"),
    ]


def test_the_table_has_a_row_for_each_network_and_each_number_with_its_interval(runs):
    report = hb.report(runs)
    table = report.table
    assert list(table.index) == ["digits-trades-95", "digits-crown-ibp-99"]
    assert list(table.columns) == ["density", "nonzero_parameters"] + [
        f"{name}{end}" for name in NUMBERS for end in ("", " low", " high")
    ]
    row = table.loc["digits-trades-95"]
    assert row["PGD-2 L∞ 8/255"] == runs[0]["robust_accuracy"]
    assert row["CROWN-IBP L∞ 8/255 low"] == runs[1].summary["metrics"]["verified_accuracy"]["low"]
    assert table["CROWN-IBP L∞ 8/255"].isna().tolist() == [False, True]
    assert repr(report) == "Report of 2 networks, 4 columns; see .table"


def test_it_is_the_report_of_the_command(runs, tmp_path):
    report = hb.report(runs, tmp_path / "report")
    assert (tmp_path / "report" / "leaderboard.md").read_text() == report.to_markdown()
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"leaderboard.csv", "summary.json"}
    assert hb.report(runs[0]).table.equals(hb.report(runs[0].path).table)


def test_runs_that_contradict_each_other_are_refused(few, own_network, tmp_path):
    attacked = hb.attack(own_network, few, epsilon="8/255", steps=2)
    certified = hb.certify(own_network, few, method="ibp", epsilon="8/255", out=tmp_path / "run")
    broken = attacked.records.query("label == prediction and not robust").index[:1].tolist() or [0]
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    assert len(lines) == len(certified.records)
    lines[broken[0]] = lines[broken[0]].replace('"verified": false', '"verified": true')
    (tmp_path / "run" / "records.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises((LedgerError, GateError), match="altered"):
        hb.report([attacked, tmp_path / "run"])
    with pytest.raises(LedgerError, match="altered"):
        hb.Run(tmp_path / "run")
