"""A disk that takes no more: every write ends in one line, files are whole or absent, and --resume goes on."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hydrabench.files import write_together

ATTACK = ("attack", "--attack", "clean", "--ckpt", "digits-trades-95", "-n", 120)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes; writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def verdicts(folder: Path) -> list[dict]:
    """The records without their times."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def refused(result) -> None:
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "file too large;" in lines[0]
    assert "--resume" in lines[0]


@pytest.mark.parametrize("size", [0, 500, 1_500, 3_000, 10_000, 25_000])
def test_an_evaluation_goes_on_where_a_full_disk_stopped_it(hydrabench, here, size):
    """The limits stop the header, the first block and the second; what follows is small and fits."""
    with largest_file(size):
        refused(hydrabench(*ATTACK, "--out", "run"))
    if (here / "run" / "run.json").exists():
        json.loads((here / "run" / "run.json").read_text())
    assert hydrabench(*ATTACK, "--out", "run", "--resume").exit_code == 0
    assert hydrabench(*ATTACK, "--out", "whole").exit_code == 0
    assert verdicts(here / "run") == verdicts(here / "whole")
    assert not list((here / "run").glob(".*.partial"))


def test_a_report_is_written_whole_or_not_at_all(hydrabench, here):
    assert hydrabench(*ATTACK, "--out", "run").exit_code == 0
    report = ("report", "run", "--out", "report")
    assert hydrabench(*report, "--format", "md").exit_code == 0
    before = {path.name: path.read_bytes() for path in (here / "report").iterdir()}
    sizes = [len(before["leaderboard.md"]) - 1, 300, 0]
    for size in sizes:
        with largest_file(size):
            refused(hydrabench(*report))
        assert {path.name: path.read_bytes() for path in (here / "report").iterdir()} == before
    assert hydrabench(*report).exit_code == 0
    assert {path.name for path in (here / "report").iterdir()} == {"leaderboard.md", "leaderboard.csv", "summary.json"}


@pytest.mark.parametrize("size", [200, 5_000, 60_000])
def test_training_goes_on_where_a_full_disk_stopped_it(hydrabench, here, write_recipe, size):
    """The limits stop the header, the state after an epoch, and the checkpoint."""
    write_recipe(here / "recipe.yml", train={"epochs": 1, "batch_size": 512, "lr": 0.1})
    train = ("train", "--config", "recipe.yml", "--out", "run")
    with largest_file(size):
        refused(hydrabench(*train))
    assert not (here / "run" / "checkpoint.safetensors").exists()
    assert hydrabench(*train, "--resume").exit_code == 0
    assert (here / "run" / "checkpoint.safetensors").exists()
    assert not list((here / "run").glob(".*.partial"))


@pytest.mark.parametrize("layout", ["dense", "compact", "hydra", "state-dict"])
def test_an_export_is_written_whole_or_not_at_all(hydrabench, here, layout):
    export = ("zoo", "export", "digits-trades-95", "--format", layout, "--out", "out/exported")
    with largest_file(1_000):
        result = hydrabench(*export)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not list((here / "out").iterdir())
    assert hydrabench(*export).exit_code == 0


def test_several_files_are_written_together(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_together({tmp_path / "a": "new", tmp_path / "b": "\udc80"})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
    write_together({tmp_path / "a": "new", tmp_path / "b": "∞"})
    assert (tmp_path / "b").read_text(encoding="utf-8") == "∞"
