"""A folder in which much is bad, and a command there that must end in one line."""

from __future__ import annotations

import os
import re
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.boundaries import HEAD, RECIPES, run

SECONDS = 60.0  # for one command, which takes about one; a command that hangs does not end at all


@pytest.fixture(scope="module")
def world(tmp_path_factory, write_recipe, write_checkpoint) -> Iterator[Path]:
    """A folder with a good recipe, a good checkpoint and a good run, and much that is bad."""
    folder = tmp_path_factory.mktemp("world")
    write_recipe(folder / "recipe.yml")
    write_checkpoint(folder / "dense.safetensors")
    for name, text in RECIPES.items():
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")
    (folder / "binary").write_bytes(b"\xff\xfe\x00" * 9)
    (folder / "ids.txt").write_text("3\n500\n")
    (folder / "t.tsv").write_text(HEAD + "0\t1\t1\t0.1\t1\t0:00:01\n")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.safetensors").write_text("weights")
    (folder / "liar.safetensors").write_bytes(struct.pack("<Q", 10**12) + b"{}")
    (folder / "deep.safetensors").write_bytes(struct.pack("<Q", 5000) + b"[" * 5000)
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = run("attack", "--attack", "clean", "--ckpt", "dense.safetensors", "-n", 3, "--out", "runs/clean")
        assert done.exit_code == 0, done.output
        yield folder


@pytest.fixture
def answered(world, monkeypatch) -> Iterator[Callable[..., None]]:
    """Run one command that must end in one line that matches, soon, and leave no folder behind."""
    monkeypatch.chdir(world)

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"no answer in {SECONDS:g} seconds")

    usual = signal.signal(signal.SIGALRM, late)

    def check(message: str, *arguments: object) -> None:
        before = sorted(path.name for path in world.iterdir())
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            result = run(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code in (1, 2), result.output
        assert result.stdout == ""
        said = result.stderr.splitlines()
        error = said[-1]
        assert error.startswith("error: " if result.exit_code == 1 else "Error: "), result.stderr
        assert all(line.startswith("[1/") for line in said[:-1]) or result.exit_code == 2, result.stderr  # a pipeline's
        assert re.search(message, error), error
        assert len(error) < 6000
        assert sorted(path.name for path in world.iterdir()) == before

    yield check
    signal.signal(signal.SIGALRM, usual)
