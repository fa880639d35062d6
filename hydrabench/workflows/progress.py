"""Progress on stderr: a bar on a terminal, a status line every few seconds in a log."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

LOG_SECONDS = 5.0
LOG_WIDTH = 120  # characters of a line in a log
LEAST_NOTE = 40  # characters of it that a long title leaves
PART_ROUNDING = 1e-6  # pieces, of a sum of parts of them
Advance = Callable[[float, str], None]  # pieces of work, and a note beside them


def say(message: str) -> None:
    """Tell the user one line, on stderr, so that stdout holds results only."""
    with suppress(OSError):  # a full or closed log does not end the work
        print(message, file=sys.stderr, flush=True)


@contextmanager
def tracking(title: str, *, total: int, done: int = 0, visible: bool = True) -> Iterator[Advance]:
    """Show how far `total` pieces of work have come.

    Args:
        title: what is being done.
        total: pieces in all; done: pieces that an earlier run finished.
        visible: False for the processes that do not talk to the user.
    Yields: `advance(pieces, note)`, to be called as work is finished, or with 0 pieces for another note beside it.
    """
    if not visible:
        yield _ignore
    else:
        with (_bar if _shows_bars() else _log)(title, total, done) as advance:
            yield advance


def _shows_bars() -> bool:
    """Return whether stderr is a terminal, or a notebook with the widgets that rich needs there."""
    in_notebook = Console(stderr=True).is_jupyter
    return sys.stderr.isatty() and (not in_notebook or find_spec("ipywidgets") is not None)


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Advance]:
    # On a narrow terminal the title and the note give way, never the numbers.
    columns = (
        TextColumn("{task.description}", markup=False, table_column=_flexible(3)),
        BarColumn(bar_width=10),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=len(f"{total}/{total}"))),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=4)
        ),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")
        state = {"done": float(done)}

        def advance(pieces: float, note: str) -> None:
            state["done"] += pieces
            progress.update(task, completed=_whole(state["done"]), note=note)

        yield advance


def _whole(done: float) -> int:
    """Return the pieces that are done as a whole; a sum of parts may be a rounding error short of one."""
    return int(done + PART_ROUNDING)


def _flexible(ratio: int) -> Column:
    """A column that is cut where there is too little room."""
    return Column(no_wrap=True, overflow="ellipsis", ratio=ratio)


@contextmanager
def _log(title: str, total: int, done: int) -> Iterator[Advance]:
    """Print a line when `LOG_SECONDS` have passed since the last, and at the end of work that is complete."""
    start = time.monotonic()
    state: dict[str, float] = {"done": done, "fresh": 0, "printed": start, "end": 0}
    waiting: list[str] = []

    def advance(pieces: float, note: str) -> None:
        moment = time.monotonic()
        state["done"] += pieces
        state["fresh"] += pieces
        if pieces:
            state["end"] = moment + (moment - start) / state["fresh"] * (total - state["done"])
        # Until something is done, and once a piece takes longer than those before it, nobody knows.
        left = f", {state['end'] - moment:.0f} s left" if state["end"] >= moment else ""
        waiting[:] = [log_line(title, f"{_whole(state['done'])}/{total}, {moment - start:.0f} s{left}", note)]
        if moment - state["printed"] >= LOG_SECONDS:
            state["printed"] = moment
            say(waiting.pop())

    try:
        yield advance
    finally:  # what came whole is said, too, if it turns out to be of no use
        if waiting and _whole(state["done"]) >= total:
            say(waiting.pop())


def log_line(title: str, numbers: str, note: str = "") -> str:
    """Return a line of a log. A long title is cut in its middle, a long note after a word, the numbers never."""
    room = LOG_WIDTH - LEAST_NOTE - len(f": {numbers}  ")
    if len(title) > room:
        title = f"{title[: room // 2]}…{title[-((room - 1) // 2) :]}"
    head = f"{title}: {numbers}" + "  " * bool(note)
    return head + textwrap.shorten(note, LOG_WIDTH - len(head), placeholder=" …")


def _ignore(pieces: float, note: str) -> None:
    """Progress of a process that does not talk to the user."""
