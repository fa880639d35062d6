"""The leaderboard as Markdown, CSV, LaTeX, JSON, and a table on a terminal, all made from the tables of `frames`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hydrabench.reporting.columns import Column
from hydrabench.reporting.frames import alike, as_records, cell_text, columns, networks, numbers, records, shown
from hydrabench.reporting.leaderboard import Leaderboard
from hydrabench.reporting.legend import MISSING, caption, headings, notes, protocol_lines, size_text
from hydrabench.reporting.paired import cochran_table, comparisons, p_text, points, seeds, significance
from hydrabench.reporting.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

NAME = "checkpoint"  # heading of the names
EMPTY = f"{MISSING}\n"  # letters of a cell that says nothing
MOST_COMPARISONS = 10  # of networks that a terminal shows; JSON has all
UNBOUNDED = 100_000  # characters: more than any table has
SCHEMA = "hydrabench.leaderboard/2"
# What LaTeX has no letter for without a package.
LATEX = {
    "∞": r"$\infty$",
    "σ": r"$\sigma$",
    "α": r"$\alpha$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "–": "--",
    "†": r"$\dagger$",
}


def markdown(board: Leaderboard) -> str:
    """The whole leaderboard as a Markdown page: a table for each data set, comparisons, how to read it, protocols."""
    parts = ["# Leaderboard"]
    for part in by_dataset(board):
        frame = shown(part).droplevel(0, axis=1)
        parts += [caption(part), _markdown_table(frame.rename_axis("checkpoint").reset_index(), 3)]
    for title, table, note in comparisons(board):
        parts += [f"## {title}", _markdown_table(table, 2), note]
    same = [f"All networks: {alike(board)}."] if alike(board) else []
    parts += ["## How to read it", "\n".join(f"- {note}" for note in [*notes(board), *same])]
    parts += ["## Protocols", "\n".join(f"- `{protocol}`: {text}" for protocol, text in protocol_lines(board))]
    return "\n\n".join(parts) + "\n"


def by_dataset(board: Leaderboard) -> list[Leaderboard]:
    """Return the leaderboard of each data set, with the columns and rows that belong to it."""
    parts = []
    for dataset in dict.fromkeys(column.images.name for column in board.columns):
        mine = tuple(column for column in board.columns if column.images.name == dataset)
        rows = tuple(row for row in board.rows if not row.cells.keys().isdisjoint(mine))
        parts.append(replace(board, columns=mine, rows=rows))
    return parts


def _markdown_table(frame: pd.DataFrame, left: int) -> str:
    """Write a table of texts, whose first `left` columns are words and the others numbers."""
    width = len(frame.columns)
    rule = ["---"] * left + ["---:"] * (width - left)
    return "\n".join(map(_markdown_line, [list(frame.columns), rule, *frame.to_numpy().tolist()]))


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def csv_text(board: Leaderboard) -> str:
    """The leaderboard for machines: one line a number, fractions at full precision; see `frames.numbers`.

    A field that says nothing of a number, or an infinite end of an interval, is empty.
    """
    return str(numbers(board).to_csv(index=False, lineterminator="\n"))


def parquet(board: Leaderboard) -> bytes:
    """The records of all ledgers as a Parquet file, see `frames.records`."""
    return bytes(records(board).to_parquet(index=False))


def latex(board: Leaderboard) -> str:
    """The leaderboard as a table of LaTeX; it needs the package booktabs.

    A group of columns has a heading of its own; intervals stand behind their numbers, in small print.
    """
    frame = shown(board)
    columns = len(frame.columns)
    styled = frame.style.format(escape="latex").format_index(escape="latex").format_index(escape="latex", axis=1)
    text = styled.to_latex(
        column_format="lrll" + "r" * (columns - 3),
        caption=" ".join([caption(board), *notes(board)]).translate({ord("%"): r"\%"}),
        label="tab:leaderboard",
        position="htbp",
        position_float="centering",
        hrules=True,
        multicol_align="c",
    )
    for letter, command in LATEX.items():
        text = text.replace(letter, command)
    return f"% needs \\usepackage{{booktabs}}\n{text}"


def summary_json(board: Leaderboard) -> dict[str, Any]:
    """The leaderboard as one JSON value; `column` and `network` of each number name entries of the other two lists."""
    return {
        "schema": SCHEMA,
        "networks": as_records(networks(board).reset_index()),
        "columns": as_records(columns(board).reset_index()),
        "numbers": as_records(numbers(board)),
        "score": {name: column.key for name, column in board.score.items()},
        "significance": as_records(significance(board)),
        "cochran": as_records(cochran_table(board)),
        "seeds": as_records(seeds(board)),
        "protocols": {
            protocol.id: {"kind": protocol.kind, "settings": dict(protocol.settings)} for protocol in board.protocols
        },
    }


def rich_tables(board: Leaderboard, width: int) -> list[Table]:
    """The leaderboard for a terminal: intervals on a second line, headings cut into lines.

    Mean radii, architectures and objectives are left to the written report, so that clean, one attack, one bound and
    two certified radii fit into 100 columns. What does not fit goes on in further tables of the same rows. A name is
    broken, behind a "/", only where there is no room for it. Every data set has tables of its own.

    Args:
        width: characters in a line of the terminal.
    """
    return [table for part in by_dataset(board) for table in _rich_tables(part, width)]


def _rich_tables(board: Leaderboard, width: int) -> list[Table]:
    narrowest = max(len(NAME), *(len(part) for row in board.rows for part in _parts(row.label)))
    groups: list[list[Column]] = [[]]
    widths = [0]  # of the table of each group, with the narrowest names
    for column in board.columns:
        if column.metric in ("average_certified_radius", "average_verified_radius"):
            continue
        needed = _width(_rich_table(board, [*groups[-1], column], narrowest))
        if groups[-1] and needed > width:
            groups.append([column])
            widths.append(_width(_rich_table(board, [column], narrowest)))
        else:
            groups[-1].append(column)
            widths[-1] = needed
    room = narrowest + max(0, width - max(widths))
    tables = [_rich_table(board, group, room) for group in groups]
    tables[-1].caption = Text(caption(board))
    return tables


def _width(table: Table) -> int:
    unbounded = Console(width=UNBOUNDED)
    return Measurement.get(unbounded, unbounded.options, table).maximum


def _rich_table(board: Leaderboard, columns: Sequence[Column], room: int) -> Table:
    """Make one table. room: characters of a line of a name, at least those of its longest part."""
    titled = headings(board)
    table = Table(caption_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    broken = [_broken(row.label, room) for row in board.rows]
    table.add_column(NAME, overflow="fold", min_width=max(len(line) for lines in broken for line in lines))
    about = {name: cells for name, cells in _about(board).items() if any(set(cell) - set(EMPTY) for cell in cells)}
    for name in about:
        table.add_column(name, justify="right", no_wrap=True)
    for column in columns:
        table.add_column(Text(_stacked(titled[column])), justify="right", no_wrap=True)
    for number, row in enumerate(board.rows):
        cells = [_stacked_cell(row.cells.get(column)) for column in columns]
        table.add_row(Text("\n".join(broken[number])), *(texts[number] for texts in about.values()), *cells)
    return table


def _about(board: Leaderboard) -> dict[str, list[str]]:
    """Return what the tables of a terminal say of each network beside its name."""
    networks = [row.checkpoint for row in board.rows]
    return {
        "density": [MISSING if one.density is None else f"{one.density:g}" for one in networks],
        "size\nnonzero": [f"{size_text(one.size)}\n{_counted(one.nonzero_parameters)}" for one in networks],
    }


def comparison_lines(board: Leaderboard) -> list[str]:
    """Say for a terminal how networks differ: a line for each paired comparison, HYDRA's with LWM first.

    There are at most `MOST_COMPARISONS` of them, and nothing if there are no comparisons.
    """
    known: dict[tuple[str, ...], str] = {}
    for one in as_records(significance(board)):
        first, second, column = one["first"], one["second"], one["column"]
        interval = f"[{points(one['low'])}, {points(one['high'])}]"
        line = f"  {first} - {second}, {column}: {points(one['difference'])} {interval}, p = {p_text(one['p_holm'])}"
        known.setdefault((column, *sorted((first, second))), line)  # HYDRA and its twin may be a pair of a group, too
    lines = [*known.values()]
    more = len(lines) - MOST_COMPARISONS
    rest = [f"  and {more} more, see significance in --json"] if more > 0 else []
    title = "Differences on the same images: percentage points, 95 % interval, McNemar's p after Holm's correction"
    return [title, *lines[:MOST_COMPARISONS], *rest] if lines else []


def _parts(label: str) -> list[str]:
    """Cut a name behind every "/"."""
    return [part for part in re.split(r"(?<=/)", label) if part]


def _broken(label: str, room: int) -> list[str]:
    """Break a name into lines of at most `room` characters, behind a "/", as few as will do."""
    lines = [""]
    for part in _parts(label):
        if lines[-1] and len(lines[-1] + part) > room:
            lines.append("")
        lines[-1] += part
    return lines


def _counted(count: int | None) -> str:
    return MISSING if count is None else f"{count:,}"


def _stacked_cell(estimate: Estimate | None) -> str:
    """The number above its interval, which is written without brackets: "93.4\\n90.9–95.3"."""
    value, interval = cell_text(estimate)
    return f"{value}\n{interval.strip('[]').replace(', ', '–')}"


def _stacked(heading: str) -> str:
    """Break a heading so that a threat or a radius stands on a line of its own: "PGD-50\\nL∞ 8/255"."""
    for mark in (" L∞ ", " L2 ", " L1 ", " σ=", " r=", " (", " ["):
        heading = heading.replace(mark, "\n" + mark[1:], 1)
    return heading
