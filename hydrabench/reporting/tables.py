"""The leaderboard as Markdown, CSV, JSON, and a table on a terminal: the same numbers each time."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hydrabench.reporting.leaderboard import Column, Leaderboard, Row
from hydrabench.reporting.legend import MISSING, caption, headings, notes, protocol_lines, size_text
from hydrabench.reporting.statistics import Estimate
from hydrabench.threat import radius_text

UNBOUNDED = 100_000  # characters: more than any table has
SCHEMA = "hydrabench.leaderboard/1"
_ABOUT = ("name", "sha256", "arch", "objective", "density", "parameters", "nonzero_parameters", "bytes")


def cell_text(estimate: Estimate | None) -> tuple[str, str]:
    """A number and its interval as a reader sees them: ("93.4", "[90.9, 95.3]"), or a dash and nothing.

    Fractions are shown in percent with one decimal, mean radii in pixel units with three.
    """
    if estimate is None:
        return MISSING, ""
    if estimate.count is None:
        high = f"{estimate.high:.3f}]" if estimate.as_json()["high"] is not None else "∞)"
        return f"{estimate.value:.3f}", f"[{estimate.low:.3f}, {high}"
    return f"{estimate.value:.1%}"[:-1], f"[{estimate.low * 100:.1f}, {estimate.high * 100:.1f}]"


def markdown(board: Leaderboard) -> str:
    """The whole leaderboard as a Markdown page: caption, table, how to read it, protocols."""
    names = headings(board)
    head = ["checkpoint", "arch", "objective", "density", "nonzero", "size", *(names[c] for c in board.columns)]
    rows = [_markdown_row(row, board.columns) for row in board.rows]
    lines = [
        "# Leaderboard",
        "",
        caption(board),
        "",
        _markdown_line(head),
        _markdown_line(["---"] * 3 + ["---:"] * (len(head) - 3)),
        *map(_markdown_line, rows),
        "",
        "## How to read it",
        "",
        *(f"- {note}" for note in notes(board)),
        "",
        "## Protocols",
        "",
        *(f"- `{protocol}`: {text}" for protocol, text in protocol_lines(board)),
    ]
    return "\n".join(lines) + "\n"


def _markdown_row(row: Row, columns: Sequence[Column]) -> list[str]:
    checkpoint = row.checkpoint
    about = [row.label, checkpoint.arch, checkpoint.objective, _known(checkpoint.density, "g")]
    nonzero = f"{_known(checkpoint.nonzero_parameters, ',')} of {_known(checkpoint.parameters, ',')}"
    about += [MISSING if checkpoint.parameters is None else nonzero, size_text(checkpoint.bytes)]
    return about + [" ".join(cell_text(row.cells.get(column))).strip() for column in columns]


def _known(value: float | None, style: str) -> str:
    return MISSING if value is None else format(value, style)


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def csv_text(board: Leaderboard) -> str:
    """The leaderboard for machines: one line per checkpoint, fractions at full precision.

    Each column of the table becomes three, `KEY:value`, `KEY:low` and `KEY:high`, where KEY is
    `Column.key`; a cell without a number (or with an infinite end) is empty.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parts = ("value", "low", "high")
    writer.writerow([*_ABOUT, *(f"{column.key}:{part}" for column in board.columns for part in parts)])
    for row in board.rows:
        values = [getattr(row.checkpoint, name) for name in _ABOUT]
        for column in board.columns:
            cell = row.cells[column].as_json() if column in row.cells else {}
            values += [cell.get(part) for part in parts]
        writer.writerow(values)
    return buffer.getvalue()


def summary_json(board: Leaderboard) -> dict[str, Any]:
    """The leaderboard as one JSON value; the keys of `cells` are those of `columns`."""
    names = headings(board)
    return {
        "schema": SCHEMA,
        "columns": [_column_json(column, names[column]) for column in board.columns],
        "rows": [
            {
                "checkpoint": asdict(row.checkpoint),
                "cells": {column.key: row.cells[column].as_json() for column in board.columns if column in row.cells},
            }
            for row in board.rows
        ],
        "protocols": {
            protocol.id: {"kind": protocol.kind, "settings": dict(protocol.settings)} for protocol in board.protocols
        },
    }


def _column_json(column: Column, heading: str) -> dict[str, Any]:
    threat = column.threat
    return {
        "key": column.key,
        "heading": heading,
        "dataset": {key: value for key, value in asdict(column.images).items() if value != ""},
        "precision": column.precision,
        "protocol": column.protocol,
        "metric": column.metric,
        "norm": threat.norm if threat else None,
        "epsilon": radius_text(threat.epsilon) if threat else None,
        "sigma": column.sigma,
        "radius": column.radius,
    }


def rich_tables(board: Leaderboard, width: int) -> list[Table]:
    """The leaderboard for a terminal: intervals on a second line, headings and names cut into lines.

    Mean radii, architectures and objectives are left to the written report, so that clean, one attack, one bound and
    two certified radii fit into 100 columns. What does not fit goes on in further tables of the same rows.

    Args:
        width: characters in a line of the terminal.
    """
    unbounded = Console(width=UNBOUNDED)
    groups: list[list[Column]] = [[]]
    for column in board.columns:
        if column.metric == "average_certified_radius":
            continue
        wider = [*groups[-1], column]
        needed = Measurement.get(unbounded, unbounded.options, _rich_table(board, wider)).maximum
        if groups[-1] and needed > width:
            groups.append([column])
        else:
            groups[-1] = wider
    tables = [_rich_table(board, group) for group in groups]
    tables[-1].caption = Text(caption(board))
    return tables


def _rich_table(board: Leaderboard, columns: Sequence[Column]) -> Table:
    names = headings(board)
    table = Table(caption_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    parts = [part for row in board.rows for part in row.label.replace("/", "/\n").split("\n")]
    table.add_column("checkpoint", overflow="fold", min_width=max(map(len, parts)))
    for name in ("density", "size\nnonzero"):
        table.add_column(name, justify="right", no_wrap=True)
    for column in columns:
        table.add_column(Text(_stacked(names[column])), justify="right", no_wrap=True)
    for row in board.rows:
        checkpoint = row.checkpoint
        size = f"{size_text(checkpoint.bytes)}\n{_known(checkpoint.nonzero_parameters, ',')}"
        cells = [_stacked_cell(row.cells.get(column)) for column in columns]
        table.add_row(Text(row.label.replace("/", "/\n")), _known(checkpoint.density, "g"), size, *cells)
    return table


def _stacked_cell(estimate: Estimate | None) -> str:
    """The number above its interval, which is written without brackets: "93.4\\n90.9–95.3"."""
    value, interval = cell_text(estimate)
    return f"{value}\n{interval.strip('[]').replace(', ', '–')}"


def _stacked(heading: str) -> str:
    """Break a heading so that a threat or a radius stands on a line of its own: "PGD-50\\nL∞ 8/255"."""
    for mark in (" L∞ ", " L2 ", " L1 ", " σ=", " r=", " (", " ["):
        heading = heading.replace(mark, "\n" + mark[1:], 1)
    return heading
