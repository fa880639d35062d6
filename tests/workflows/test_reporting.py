"""From folders to files: what is found, what is written, and that nothing is when the report is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from hydrabench.checkpoints import read_manifest
from hydrabench.errors import ConfigError, GateError, LedgerError
from hydrabench.ledger import AttackRecord, VerifiedRecord, open_run
from hydrabench.reporting import summarize
from hydrabench.reporting.frames import described
from hydrabench.workflows.reporting import REPORT_FORMATS, find_runs, write_report

CHECKPOINT = {
    "name": "tiny",
    "sha256": "ab" * 32,
    "arch": "cnn_small",
    "objective": "natural",
    "density": 1.0,
    "parameters": 10,
    "nonzero_parameters": 10,
    "bytes": 40,
}


def write_run(path, kind, *, holds=(True, True, False), command=None, finish=True):
    """An evaluation of three images, all rightly classified, at L∞ 0.1."""
    settings = {"kind": kind, "norm": "linf", "epsilon": "0.1"}
    header = {
        "command": command or ("attack" if kind == "pgd" else "certify"),
        "settings": settings,
        "protocol": "pgd-50@2" if kind == "pgd" else f"{kind}@1",
        "checkpoint": CHECKPOINT,
        "dataset": {"name": "digits", "split": "test", "n": 3},
        "precision": "float32",
    }
    run = open_run(path, header, resume=False)
    bases = [(index, f"{index}" * 64, 1, 1, 0.5) for index in range(3)]
    if kind == "pgd":
        run.append(
            [
                AttackRecord(*b, robust=h, broken_by=None if h else "pgd-ce", step=None, margin=None)
                for b, h in zip(bases, holds, strict=True)
            ]
        )
    else:
        lower = [0.1 if h else -0.1 for h in holds]
        run.append([VerifiedRecord(*b, verified=low > 0, lower=low) for b, low in zip(bases, lower, strict=True)])
    if finish:
        run.finish(summarize(kind, list(run.records()), None))
    return run


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs" / "tiny" / "attack", "pgd")
    write_run(tmp_path / "runs" / "tiny" / "certify", "ibp", holds=(True, False, False))
    return tmp_path / "runs"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_formats_are_written_from_a_parent_folder(runs, tmp_path):
    board = write_report([runs], tmp_path / "out", REPORT_FORMATS)
    figures = tmp_path / "out" / "figures"
    assert sorted(path.name for path in figures.iterdir()) == sorted(
        f"{name}.{end}" for name in ("sandwich",) for end in ("csv", "png", "pdf")
    )
    shutil.rmtree(figures)
    assert sorted(contents(tmp_path / "out")) == [
        "index.html",
        "leaderboard.csv",
        "leaderboard.md",
        "leaderboard.tex",
        "summary.json",
    ]
    assert [column.metric for column in board.columns] == [
        "clean_accuracy",
        "robust_accuracy",
        "verified_accuracy",
        "undecided",
    ]
    assert "| 66.7 [20.8, 93.9] | 33.3 [0.8, 90.6] |" in (tmp_path / "out" / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("md", "leaderboard.md"),
        ("csv", "leaderboard.csv"),
        ("json", "summary.json"),
        ("latex", "leaderboard.tex"),
        ("parquet", "records.parquet"),
    ],
)
def test_only_the_formats_asked_for_are_written(runs, tmp_path, name, file):
    write_report([runs], tmp_path / "out", [name])
    assert list(contents(tmp_path / "out")) == [file]


def test_parquet_holds_the_records_of_all_runs(runs, tmp_path):
    write_report([runs], tmp_path / "out", ["parquet"])
    frame = pd.read_parquet(tmp_path / "out" / "records.parquet")
    assert frame.groupby("protocol")["index"].apply(list).to_dict() == {"ibp@1": [0, 1, 2], "pgd-50@2": [0, 1, 2]}
    assert frame["robust"].dropna().tolist() == [True, True, False]
    assert frame["verified"].dropna().tolist() == [True, False, False]
    assert set(frame["epsilon"]) == {"0.1"}


def test_the_same_report_twice_is_the_same_bytes(runs, tmp_path):
    write_report([runs], tmp_path / "out", REPORT_FORMATS)
    first = contents(tmp_path / "out")
    write_report([runs], tmp_path / "out", REPORT_FORMATS)
    write_report([runs / "tiny" / "certify", runs / "tiny" / "attack", runs], tmp_path / "again", REPORT_FORMATS)
    assert first == contents(tmp_path / "out") == contents(tmp_path / "again")


def test_runs_are_found_once_however_they_are_given(runs):
    found = find_runs([runs, runs / "tiny", runs / "tiny" / "attack", runs / ".." / "runs"])
    assert [run.path.name for run in found] == ["attack", "certify"]


def test_training_runs_below_the_folder_are_passed_over(runs, tmp_path):
    write_run(runs / "train", "pgd", command="train", finish=False)
    board = write_report([runs], tmp_path / "out", ["csv"])
    assert len(board.rows) == 1


def refused(error, match, paths, out, formats=REPORT_FORMATS):
    before = contents(out) if out.is_dir() else None
    with pytest.raises(error, match=match):
        write_report(paths, out, formats)
    assert (contents(out) if out.is_dir() else None) == before


def test_a_contradiction_writes_only_what_shows_it_again(runs, tmp_path):
    write_run(runs / "wrong", "crown-ibp", holds=(True, True, True))
    with pytest.raises(GateError, match=r"checkpoint tiny .* image 2; .*what shows it again is in .*/contradiction"):
        write_report([runs], tmp_path / "out", REPORT_FORMATS)
    (folder,) = (tmp_path / "out").iterdir()
    assert sorted(contents(folder)) == ["contradiction.json", "reproduce.sh"]  # no such pixels are in digits
    told = json.loads((folder / "contradiction.json").read_text())
    assert (told["dataset"]["index"], told["how"]) == (2, "broken at L∞ 0.1")
    assert told["checkpoint"] == {"name": "tiny", "sha256": "ab" * 32}
    assert told["records"]["verified"]["verified"]
    assert not told["records"]["contradicted"]["robust"]
    assert (folder / "reproduce.sh").read_text().splitlines()[1:] == [
        "hydrabench certify --ckpt tiny --method crown-ibp --norm linf --epsilon 0.1 --index 2",
        "hydrabench attack --ckpt tiny --attack pgd --norm linf --epsilon 0.1 -n 3 --keep adversarial",
    ]


def test_a_refused_report_leaves_the_earlier_one_alone(runs, tmp_path):
    write_report([runs], tmp_path / "out", REPORT_FORMATS)
    write_run(runs / "late", "crown-ibp", finish=False)
    refused(LedgerError, r"late is not complete .* --resume", [runs], tmp_path / "out")


def test_paths_without_runs_are_refused(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    records = runs / "tiny" / "attack" / "records.jsonl"
    refused(LedgerError, "empty is not a run folder and holds none", [runs, tmp_path / "empty"], tmp_path / "out")
    refused(LedgerError, "nowhere does not exist; give run folders", [tmp_path / "nowhere"], tmp_path / "out")
    refused(LedgerError, r"records\.jsonl is a file; give run folders", [records], tmp_path / "out")


def test_training_runs_alone_make_no_report(tmp_path):
    write_run(tmp_path / "runs" / "train", "pgd", command="train")
    refused(LedgerError, "no evaluation among 1 run folder;", [tmp_path / "runs"], tmp_path / "out")


def test_an_unknown_format_is_refused(runs, tmp_path):
    refused(ConfigError, "unknown report format 'cvs'; did you mean 'csv'?", [runs], tmp_path / "out", ["md", "cvs"])


def test_a_report_does_not_replace_the_summary_of_a_run(runs):
    refused(LedgerError, "attack is a run folder", [runs], runs / "tiny" / "attack")


def test_an_out_that_is_a_file_is_refused(runs, tmp_path):
    (tmp_path / "out").write_text("mine")
    refused(LedgerError, "out is a file; --out names a folder", [runs], tmp_path / "out")


def test_a_report_is_written_without_torch(tmp_path):
    write_run(tmp_path / "run", "pgd")
    command = (
        f"main(['report', {str(tmp_path / 'run')!r}, '--out', {str(tmp_path / 'report')!r}], standalone_mode=False)"
    )
    program = f"import sys; from hydrabench.cli import main; {command}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert (tmp_path / "report" / "leaderboard.md").is_file()


def test_a_parent_is_named_by_the_zoo_or_by_the_folder_that_trained_it(tmp_path):
    """What was fine-tuned in the zoo comes from a pruned network that is not in it: it shows the dense one."""
    zoo, trained, nowhere = read_manifest()["digits-trades-95"].sha256, "7" * 64, "8" * 64
    for name, sha256, parent in (("zoo", zoo, "6" * 64), ("own", "1" * 64, trained), ("other", "2" * 64, nowhere)):
        run = write_run(tmp_path / "runs" / name / "attack", "pgd")
        about = json.loads((run.path / "run.json").read_text())
        about["checkpoint"] |= {"sha256": sha256, "name": name}
        (run.path / "run.json").write_text(json.dumps({**about, "origin": {"parent": parent}}))
    training = tmp_path / "runs" / "prune-0.1"
    training.mkdir()
    done = {"schema": "hydrabench.run/2", "command": "prune", "status": "complete"}
    (training / "run.json").write_text(json.dumps(done))
    (training / "summary.json").write_text(json.dumps({"checkpoint_sha256": trained}))
    (training / "checkpoint.safetensors").touch()
    board = write_report([tmp_path / "runs"], tmp_path / "out", ["md"])
    assert described(board)["parent"].to_dict() == {"zoo": "digits-trades", "own": "prune-0.1", "other": "88888888"}
