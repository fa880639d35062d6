"""Errors that are not the program's: one line each. Those that are keep their traceback."""

from __future__ import annotations

import errno

import pytest
import torch
from rich.console import Console

from hydrabench.cli.failures import LONGEST_MESSAGE, one_line
from hydrabench.errors import ConfigError
from hydrabench.workflows import progress


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("two\nlines\x1b[31m"), "two lines [31m"),
        (OSError(errno.ENOSPC, "", "run/x"), "run/x: no space left on device; free some space or choose a folder on"),
        (OSError(errno.EROFS, "", "a", None, "b"), "b: read-only file system; choose a folder that can be written to"),
        (PermissionError(errno.EACCES, "", b"x"), "x: permission denied; change its permissions, or choose another"),
        (OSError(errno.ENAMETOOLONG, "", "y" * 5000), f"{'y' * 100}…{'y' * 100}: file name too long; choose a shorter"),
        (OSError("strange"), "reading or writing failed: strange"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "reading or writing failed: no space left"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4"), "a file could not be written,"),
        (MemoryError(), "out of memory: the process got no more; use a machine with more, or a smaller input"),
        (RecursionError("maximum"), "an input is nested too deeply to be read; flatten it"),
        (UnicodeEncodeError("utf-8", "a\udc80", 1, 2, "surrogates"), "'a\\udc80' is not valid Unicode, which files of"),
    ],
    ids=range(11),
)
def test_what_the_system_refuses_is_one_line(error, line):
    said = one_line(error)
    assert said is not None
    assert said.startswith(line)
    assert said.isprintable()


def test_torchs_allocator_is_one_line():
    for size in (10**14, 2**62):
        with pytest.raises(RuntimeError) as refused:
            torch.empty(size)
        assert str(one_line(refused.value)).startswith("out of memory: ")


def test_a_mistake_of_the_programs_keeps_its_traceback():
    assert one_line(ValueError("shape")) is None
    assert one_line(KeyError("index")) is None
    assert one_line(RuntimeError("mat1 and mat2")) is None


def test_a_long_message_keeps_its_ends():
    said = str(one_line(ConfigError("a" * 9000 + "b")))
    assert len(said) < LONGEST_MESSAGE + 10
    assert said.endswith("b")


def test_marks_in_a_path_are_no_markup(monkeypatch):
    terminal = Console(force_terminal=True, width=200, record=True)
    monkeypatch.setattr(progress, "Console", lambda **kwargs: terminal)
    with progress._bar("attack runs/[/red]x[bold]", 2, 0) as advance:
        advance(1, "[/note]")
    shown = terminal.export_text()
    assert "runs/[/red]x[bold]" in shown
    assert "[/note]" in shown
