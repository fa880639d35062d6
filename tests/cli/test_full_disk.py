"""A disk that takes no more: every write ends in one line, files are whole or absent, and --resume goes on."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hydrabench.files import PENDING, SCRATCH, write_together
from hydrabench.ledger import writing

REPORT = {"leaderboard.md", "leaderboard.csv", "summary.json", "leaderboard.tex", "index.html", "figures"}
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
    assert {path.name for path in (here / "report").iterdir()} == REPORT


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


def test_files_that_a_killed_writer_had_written_take_their_places_together(tmp_path, monkeypatch):
    """It was killed after the first of three; the next writer of the folder puts the others in their places."""
    real, moved = Path.replace, []

    def killed(path, target):
        if not path.name.endswith(f"{PENDING}{SCRATCH}") and SCRATCH in path.name and PENDING not in path.name:
            if moved:
                raise KeyboardInterrupt
            moved.append(path.name)
        return real(path, target)

    (tmp_path / "a").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # nor does anything clean up
        with pytest.raises(KeyboardInterrupt):
            write_together(tmp_path, {"a": "1", "b": "2", "c": "3"})
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["a"]
    with writing(tmp_path):
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "1", "b": "2", "c": "3"}


def test_several_files_are_written_together(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_together(tmp_path, {"a": "new", "b": "\udc80"})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
    write_together(tmp_path, {"a": "new", "b": "∞"})
    assert (tmp_path / "b").read_text(encoding="utf-8") == "∞"


@pytest.fixture
def small_disk(here) -> Iterator[Path]:
    """A file system of 4 MB, mounted where that is allowed."""
    disk = here / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a file system needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, left: int) -> None:
    """Leave so many kilobytes."""
    (disk / "filler").unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(max(0, free - 1024 * left)))


@pytest.mark.parametrize("left", [0, 8, 24, 64])
def test_every_command_on_a_small_disk_leaves_files_whole_and_goes_on(hydrabench, here, small_disk, write_recipe, left):
    write_recipe(here / "recipe.yml", train={"epochs": 1, "batch_size": 512, "lr": 0.1})
    commands = {
        "attack": (*ATTACK, "--out", small_disk / "attack"),
        "train": ("train", "--config", "recipe.yml", "--out", small_disk / "train"),
        "report": ("report", "run", "--out", small_disk / "report"),
        "export": ("zoo", "export", "digits-trades-95", "--format", "dense", "--out", small_disk / "export" / "a"),
    }
    assert hydrabench(*ATTACK, "--out", "run").exit_code == 0
    for name, command in commands.items():
        fill(small_disk, left)
        full = hydrabench(*command)
        assert full.exit_code in (0, 1), full.output
        if full.exit_code == 1:
            assert len([line for line in full.stderr.splitlines() if line.startswith("error: ")]) == 1, full.stderr
            assert not list((small_disk / name).glob("[!.]*.md")), "a report without its other files"
        for file in (small_disk / name).glob("[!.]*.json"):
            json.loads(file.read_text())
        (small_disk / "filler").unlink()
        resume = ("--resume",) if name in ("attack", "train") else ()
        if full.exit_code == 1:
            assert hydrabench(*command, *resume).exit_code == 0
        assert not list((small_disk / name).glob(".*")), name
    assert verdicts(small_disk / "attack") == verdicts(here / "run")
    assert {path.name for path in (small_disk / "report").iterdir()} == REPORT
