"""The report as one page of HTML that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrabench.reporting.columns import Column
from hydrabench.reporting.commands import command_of
from hydrabench.reporting.frames import alike, cell_text, described, named
from hydrabench.reporting.leaderboard import Leaderboard
from hydrabench.reporting.legend import caption, headings, notes, protocol_lines, protocol_of
from hydrabench.reporting.paired import comparisons
from hydrabench.reporting.rows import Row
from hydrabench.reporting.statistics import Estimate

if TYPE_CHECKING:
    from hydrabench.reporting.figures import Figure

PAGE_PARTS = Path(__file__).resolve().parent / "page_parts"
LEAD = ("rank", "density")  # what stands before the numbers of a network; the rest stands behind them
IMAGES_INLINE = 1000  # whose verdicts are in the page, of each number


def html_page(board: Leaderboard, pictures: Sequence[Figure] = ()) -> str:
    """Return the page: leaderboard, comparisons, figures, images, notes.

    Args: pictures: the figures to show, as SVG; their other files are expected in the folder `figures` beside the page.
    """
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(PAGE_PARTS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    names = headings(board)
    about = described(board)
    return templates.get_template("page.html.j2").render(
        style=(PAGE_PARTS / "page.css").read_text(encoding="utf-8"),
        script=(PAGE_PARTS / "page.js").read_text(encoding="utf-8"),
        caption=caption(board),
        lead=[name for name in LEAD if name in about.columns],
        rest=[name for name in about.columns if name not in LEAD],
        groups=_groups(names),
        columns=[{"heading": names[column], "group": column.group} for column in board.columns],
        rows=[_row(board, row, about.loc[row.label].to_dict()) for row in board.rows],
        tables=[
            {"title": title, "heads": list(table.columns), "rows": table.to_numpy().tolist(), "note": note}
            for title, table, note in comparisons(board)
        ],
        figures=[_figure(one) for one in pictures],
        notes=[*notes(board), *([f"All networks: {alike(board)}."] if alike(board) else [])],
        protocols=protocol_lines(board),
        data=_data(board, names),
    )


def _groups(names: Iterable[Column]) -> list[dict[str, Any]]:
    """Return neighbouring columns of one group, with how many there are."""
    found: list[dict[str, Any]] = []
    for column in names:
        if not found or found[-1]["name"] != column.group:
            found.append({"name": column.group, "span": 0})
        found[-1]["span"] += 1
    return found


def _row(board: Leaderboard, row: Row, about: dict[str, str]) -> dict[str, Any]:
    cells = [_cell(row.cells.get(column)) for column in board.columns]
    return {"label": named(row), "group": row.group, "about": about, "cells": cells}


def _cell(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    value, interval = cell_text(estimate)
    counted = f"{estimate.count} of {estimate.n} images" if estimate.count is not None else f"{estimate.n} images"
    hover = f"{counted}, 95 % interval {interval}" if interval else counted
    return {"value": value, "sort": estimate.value, "interval": interval, "hover": hover}


def _figure(one: Figure) -> dict[str, str]:
    picture = base64.b64encode(one.svg().encode()).decode()
    return {
        "name": one.name,
        "title": one.title,
        "caption": one.caption,
        "picture": f"data:image/svg+xml;base64,{picture}",
    }


def _data(board: Leaderboard, names: dict[Column, str]) -> str:
    """Return what the script needs as JSON that may stand inside an element of HTML."""
    columns = [
        {
            "heading": names[column],
            "protocol": column.protocol,
            "meaning": protocol_of(board, column).meaning,
            "images": str(column.images),
            "n": min(column.images.n, IMAGES_INLINE),
            "truth": column.interval != "t",
        }
        for column in board.columns
    ]
    rows = [
        {
            "label": row.label,
            "sha256": row.checkpoint.sha256,
            "cells": [_told(board, row, one) for one in board.columns],
        }
        for row in board.rows
    ]
    text = json.dumps({"columns": columns, "rows": rows}, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _told(board: Leaderboard, row: Row, column: Column) -> dict[str, Any] | None:
    """Return the command and the run of a number, and its verdicts on the first images as hexadecimal bits."""
    cell = board.cells.get((row.checkpoint.sha256, column))
    if cell is None:
        return None
    one = cell.evaluation
    bits = np.packbits(np.asarray(cell.values[:IMAGES_INLINE], dtype=bool)).tobytes().hex()
    found: dict[str, Any] = {"command": command_of(one), "run": one.path.name, "bits": bits}
    if column.images.chosen:
        found["indices"] = one.fields["index"][:IMAGES_INLINE].tolist()
    return found
