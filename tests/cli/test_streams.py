"""Output that cannot print everything, is closed or full: the result is the same, and so are the files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hydrabench.cli import main

ROOT = Path(__file__).parents[2]


def run(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of the shell, in which $H is hydrabench."""
    variables = {**os.environ, "H": f"{sys.executable} -m hydrabench", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_narrow_terminal_gets_the_nearest_letters(encoding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out, method, shown in (
        ("pgd", ("attack", "--attack", "pgd", "--steps", "1"), "Linf 16/255"),
        ("smoothing", ("certify", "--method", "smoothing", "--samples", "8"), "sigma=0.25"),
    ):
        arguments = [*method, "--ckpt", "digits-trades-95", "-n", "2", "--out", out]
        result = CliRunner(charset=encoding).invoke(main, arguments)
        assert result.exit_code == 0, result.exception
        assert shown in result.stdout_bytes.decode(encoding)
    result = CliRunner(charset=encoding).invoke(main, ["report", ".", "--out", "report", "--format", "md"])
    assert result.exit_code == 0, result.exception
    assert "L∞ 16/255" in (tmp_path / "report" / "leaderboard.md").read_text(encoding="utf-8")


def test_closed_and_full_streams_change_nothing_else(tmp_path):
    attack = "$H attack --ckpt digits-trades-95 --attack clean -n 2"
    done = run(
        f"{attack} --out a >&- 2>&-; echo $?; {attack} --out b --json 2>&- | head -c 1; {attack} --out c 2>/dev/full "
        f">/dev/null; echo $?; {attack} --out d >/dev/full; echo $?; {attack} --out e <&- >/dev/null; echo $?",
        tmp_path,
    )
    assert done.stdout.split() == ["0", "{0", "1", "0"], done.stdout + done.stderr
    assert "error: reading or writing failed: no space left on device; free some space" in done.stderr
    assert "Traceback" not in done.stderr
    records = {(tmp_path / name / "records.jsonl").read_text().count("\n") for name in "abcde"}
    assert records == {2}
    assert {len(list((tmp_path / name).iterdir())) for name in "abcde"} == {3}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "error: WORLD_SIZE is 2 but RANK is not set, as torchrun would; start with torchrun, or"),
        ({"WORLD_SIZE": "two"}, "error: the environment variable WORLD_SIZE is 'two', not a whole number; unset it"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "error: WORLD_SIZE is 2 but MASTER_ADDR is not set"),
    ],
)
def test_a_world_without_a_launcher_is_refused(environment, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["attack", "--ckpt", "digits-trades-95", "-n", "1", "--out", "run"])
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_a_rank_alone_is_no_second_process(monkeypatch, tmp_path):
    """It wrote no ledger and said nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "3")
    result = CliRunner().invoke(
        main, ["attack", "--ckpt", "digits-trades-95", "--attack", "clean", "-n", "1", "--out", "run"]
    )
    assert result.exit_code == 0
    assert "clean_accuracy" in result.stdout
    assert (tmp_path / "run" / "records.jsonl").read_text().count("\n") == 1
