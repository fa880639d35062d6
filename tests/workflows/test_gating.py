"""Baselines as folders, and the gate as CI runs it: what is written, and the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

import hydrabench as hb
from hydrabench.cli import main
from hydrabench.errors import ConfigError, LedgerError
from hydrabench.ledger import VerifiedRecord, open_run
from hydrabench.reporting import summarize
from hydrabench.reporting.baseline import CONTENTS_FILE
from hydrabench.workflows.gating import gate_runs, parse_drop, write_baseline

CHECKPOINT = {
    "name": "tiny", "sha256": "ab" * 32, "arch": "cnn_small", "objective": "natural", "density": 1.0,
    "parameters": 10, "nonzero_parameters": 10, "bytes": 40,
}  # fmt: skip


def make_run(path, fails=(), *, n=20, epsilon="0.1", finish=True):
    """A run of `certify --method ibp` that fails to verify some images."""
    header = {
        "command": "certify",
        "settings": {"kind": "ibp", "norm": "linf", "epsilon": epsilon},
        "protocol": "ibp@1",
        "checkpoint": CHECKPOINT,
        "dataset": {"name": "digits", "split": "test", "n": n},
        "precision": "float32",
        "environments": [{"first_record": 0, "torch": "2.8"}],
    }
    run = open_run(path, header, resume=False)
    run.append(
        [
            VerifiedRecord(
                index, f"{index:064x}", 1, 1, 0.5, verified=index not in fails, lower=-0.1 if index in fails else 0.1
            )
            for index in range(n)
        ]
    )
    if finish:
        run.finish(summarize("ibp", list(run.records()), None))
    return path


@pytest.fixture
def old(tmp_path):
    """A baseline in which image 3 is not verified."""
    write_baseline([make_run(tmp_path / "old", [3])], tmp_path / "baseline")
    return tmp_path / "baseline"


def test_a_baseline_says_with_what_its_runs_were_made(old):
    (entry,) = json.loads((old / CONTENTS_FILE).read_text())["ledgers"]
    assert entry["environment"] == {"torch": "2.8"}


def command(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.mark.parametrize(
    ("fails", "options", "status", "message"),
    [
        ([3], [], 0, "2 numbers compared, no regression"),
        ([], [], 0, "image 3 gained: verified no → yes, lower -0.1 → 0.1"),
        ([5], [], 1, "image 5 lost: verified yes → no, lower 0.1 → -0.1"),
        ([5], ["--max-drop", "0pt"], 0, "no regression"),
        ([3, 5], ["--max-drop", "4.9pt"], 1, "1 of 2 numbers regressed"),
        ([3, 5], ["--max-drop", "5pt"], 0, "no regression"),
        ([5], ["--metric", "clean"], 0, "1 number compared"),
    ],
)
def test_the_exit_status_says_whether_something_regressed(tmp_path, old, fails, options, status, message):
    result = command("gate", make_run(tmp_path / "new", fails), "--against", old, *options)
    assert result.exit_code == status
    assert message in result.stdout
    assert (result.stderr == "") == (status == 0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: make_run(path, epsilon="0.25"), "epsilon is 0.25 and was 0.1"),
        (lambda path: make_run(path, finish=False), "is not complete"),
        (lambda path: path, "does not exist; give run folders"),
    ],
)
def test_what_cannot_be_compared_has_a_status_and_a_reason_of_its_own(tmp_path, old, make, reason):
    result = command("gate", make(tmp_path / "new"), "--against", old, "--junit", tmp_path / "gate.xml")
    assert result.exit_code == 3
    assert reason in " ".join(result.stdout.split())
    assert "0 numbers compared, 1 could not be; the baseline is" in result.stderr
    assert reason in ElementTree.parse(tmp_path / "gate.xml").find(".//error").get("message")


def test_a_baseline_that_is_none_or_damaged_cannot_be_compared_with(tmp_path, old):
    new = make_run(tmp_path / "new")
    for folder, reason in ((tmp_path / "nowhere", "is no baseline"), (old, "was altered")):
        for path in old.glob("*.gz"):
            path.write_bytes(path.read_bytes() + b" ")
        verdict = gate_runs([new], folder)
        assert verdict.outcome == "not comparable"
        assert reason in verdict.refusals[0].reason


@pytest.mark.parametrize(
    "arguments", [["--max-drop", "0.5"], ["--max-drop", "half"], ["--alpha", "0"], ["--alpha", "2"]]
)
def test_bad_options_are_bad_usage(tmp_path, old, arguments):
    result = command("gate", make_run(tmp_path / "new"), "--against", old, *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_a_drop_is_points_as_text_and_a_fraction_as_a_number():
    assert (parse_drop("0.5pt"), parse_drop("100 pt"), parse_drop(0.005)) == (parse_drop(0.005), 1, parse_drop("0.5pt"))
    for wrong in ("0.5", "101pt", "-1pt", 1.5, -0.1, "", float("nan")):
        with pytest.raises(ConfigError, match=r"is no drop; write 0\.5pt for half a percentage point"):
            parse_drop(wrong)


def test_json_stands_alone_and_the_files_say_the_same(tmp_path, old):
    files = ["--junit", tmp_path / "out" / "gate.xml", "--markdown", tmp_path / "out" / "gate.md"]
    result = command("gate", make_run(tmp_path / "new", [5]), "--against", old, "--json", *files)
    assert json.loads(result.stdout)["outcome"] == "regressed"
    assert "| 5 | lost |" in (tmp_path / "out" / "gate.md").read_text()
    assert "image 5 lost" in ElementTree.parse(tmp_path / "out" / "gate.xml").find(".//failure").text


def test_a_baseline_is_replaced_and_what_it_no_longer_holds_is_removed(tmp_path, old):
    before = {path.name for path in old.iterdir()}
    result = command("baseline", make_run(tmp_path / "other", epsilon="0.2"), "--out", old, "--json")
    assert json.loads(result.stdout) == {
        "ledgers": 1, "records": 20, "bytes": sum(path.stat().st_size for path in old.iterdir()),
    }  # fmt: skip
    after = {path.name for path in old.iterdir()}
    assert (len(before), len(after), len(before & after)) == (2, 2, 1)
    assert "ledgers of 20 records" in command("baseline", tmp_path / "other", "--out", tmp_path / "b").stdout


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    run = make_run(tmp_path / "run")
    for out, reason in ((run, "holds records.jsonl and is no baseline"), (run / "run.json", "is a file")):
        with pytest.raises(LedgerError, match=reason):
            write_baseline([run], out)
    assert sorted(path.name for path in run.iterdir()) == ["records.jsonl", "run.json", "summary.json"]


def test_runs_can_be_compared_with_runs(tmp_path):
    old, new = make_run(tmp_path / "old"), make_run(tmp_path / "new", [4])
    assert gate_runs([new], old).outcome == "regressed"
    assert gate_runs([old], tmp_path / "old").outcome == "passed"


def test_the_functions_do_what_the_commands_do(tmp_path):
    baseline = hb.baseline(make_run(tmp_path / "old", [3]), tmp_path / "baseline")
    gate = hb.gate([hb.Run(make_run(tmp_path / "new", [5]))], baseline)
    assert (gate.outcome, gate.passed, gate.refused) == ("regressed", False, {})
    row = gate.table.set_index("metric").loc["verified_accuracy"]
    assert (row["n"], row["old"], row["new"], row["lost"], row["gained"]) == (20, 19, 19, 1, 1)
    assert gate.changes[["index", "direction"]].values.tolist() == [[3, "gained"], [5, "lost"]]
    assert "image 5 lost" in repr(gate)
    assert gate.to_markdown().startswith("## Robustness gate: regressed")
    assert "<failure" in gate.to_junit()
    assert hb.gate(tmp_path / "old", baseline, max_drop=0.05).passed
    assert list(hb.gate(tmp_path / "gone", baseline).refused) == [str(tmp_path / "gone")]
    assert hb.gate(tmp_path / "old", baseline).changes.empty


def test_the_gate_needs_no_torch(tmp_path, old):
    arguments = ["gate", str(make_run(tmp_path / "new", [3])), "--against", str(old)]
    call = f"main({arguments}, standalone_mode=False)"
    program = f"import sys; from hydrabench.cli import main; {call}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
