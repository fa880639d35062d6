"""Every command that writes a folder refuses one that another process is writing, in one line, and leaves it alone."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from hydrabench.ledger import writing, writing_file


@pytest.fixture
def commands(here, hydrabench, write_recipe, write_checkpoint) -> dict[str, tuple[object, ...]]:
    """The verbs that write a folder, each to be followed by its name."""
    recipe = write_recipe(here / "recipe.yml", model={"arch": "cifar_model"})
    dense = write_checkpoint(here / "dense.safetensors")
    sparse = write_checkpoint(here / "sparse.safetensors", density=0.1)
    assert hydrabench("attack", "--ckpt", dense, "--attack", "clean", "-n", 5, "--out", "ledger").exit_code == 0
    bound = ("certify", "--ckpt", dense, "-n", 5, "--method", "ibp")
    commands: dict[str, tuple[object, ...]] = {
        "attack": ("attack", "--ckpt", dense, "-n", 5, "--out"),
        "certify": (*bound, "--out"),
        "smoothing": ("certify", "--ckpt", dense, "--method", "smoothing", "--samples", 10, "-n", 2, "--out"),
        "train": ("train", "--config", recipe, "--out"),
        "prune": ("prune", "--config", recipe, "--ckpt", dense, "--density", 0.5, "--out"),
        "finetune": ("finetune", "--config", recipe, "--ckpt", sparse, "--out"),
        "pipeline": ("pipeline", "--config", recipe, "--out"),
        "report": ("report", "ledger", "--out"),
    }
    if find_spec("onnx"):
        commands["vnnlib"] = (*bound, "--out", "bounds", "--export-vnnlib")
    return commands


def test_a_folder_that_is_being_written_is_refused_by_every_verb(commands, hydrabench):
    for verb, arguments in commands.items():
        out = Path(f"{verb}-out")
        with writing(out):
            held = {path.name for path in out.iterdir()}
            result = hydrabench(*arguments, out)
            assert {path.name for path in out.iterdir()} == held, verb
        assert result.exit_code == 1, verb
        expected = f"error: {out} is being written by process {os.getpid()} on "
        assert [line for line in result.stderr.splitlines() if line.startswith(expected)], (verb, result.stderr)
        assert not out.exists(), verb


def test_a_file_that_is_being_exported_is_refused_and_what_a_killed_export_left_is_removed(here, hydrabench):
    export = ("zoo", "export", "digits-trades-95", "--format", "dense", "--out")
    with writing_file(here / "out" / "a"):
        result = hydrabench(*export, here / "out" / "a")
        assert result.exit_code == 1
        assert f"out/a is being written by process {os.getpid()} on " in result.stderr
        assert hydrabench(*export, here / "out" / "b").exit_code == 0
    for name in (".a.x1.partial", ".a.lock", ".a.json", ".ab.x1.partial"):
        (here / "out" / name).write_text("left")
    assert hydrabench(*export, here / "out" / "a").exit_code == 0
    assert {path.name for path in (here / "out").iterdir()} == {"a", "b", ".ab.x1.partial"}  # the last is of "ab"


def test_a_folder_that_was_being_written_is_written_afterwards(commands, hydrabench):
    """The processes whose lock it was are gone, whatever they left."""
    for verb, arguments in commands.items():
        out = Path(f"{verb}-out")
        out.mkdir()
        for name in (".writer.lock", ".writer.json", ".run.json.x1.partial"):
            (out / name).write_text("left")
        result = hydrabench(*arguments, out)
        assert result.exit_code == 0, (verb, result.stderr)
        assert not list(out.glob(".*")), verb
