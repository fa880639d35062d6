"""The one table model: every format of the report is made from these tables of pandas.

numbers    one row a number
networks   one row a network
columns    one row a column of the leaderboard
records    one row an image of a run
shown      the leaderboard as people read it: one row a network, texts
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydrabench.reporting.columns import Column
from hydrabench.reporting.leaderboard import Leaderboard
from hydrabench.reporting.legend import MISSING, headings, size_text
from hydrabench.reporting.ranking import rank_text
from hydrabench.reporting.rows import Row
from hydrabench.reporting.statistics import Estimate
from hydrabench.threat import radius_text

if TYPE_CHECKING:
    import pandas as pd

ABOUT = (
    "name",
    "sha256",
    "arch",
    "objective",
    "density",
    "parameters",
    "nonzero_parameters",
    "bytes",
    "compact_bytes",
    "phase",
    "recipe",
    "seed",
    "selection",
    "parent",
    "additional_data",
)
NUMBERS = (
    "network",
    "sha256",
    "dataset",
    "split",
    "images",
    "n",
    "precision",
    "group",
    "protocol",
    "norm",
    "epsilon",
    "sigma",
    "radius",
    "metric",
    "value",
    "low",
    "high",
    "count",
    "interval",
    "seconds",
    "peak_memory",
    "column",
)
OPTIONAL = ("additional data", "chosen on", "parent", "seed")
MEASURED = ("density", "nonzero", "size")  # what is known of no network that other tools judged
WHOLE = ("best_rank", "worst_rank", "parameters", "nonzero_parameters", "bytes", "compact_bytes", "seed")


def numbers(board: Leaderboard) -> pd.DataFrame:
    """Return one row a number, in the order of rows and columns.

    network: its label. images: which ones, "first" or the name of a selection. norm, epsilon: the threat ("linf",
    "8/255"); sigma: noise; radius: certified radius (pixel units). value, low, high: fractions in [0, 1] or mean
    radii, with the 95 % interval; count: of the n images. seconds: time of these images; peak_memory: bytes of the
    whole run. column: key of the column.
    """
    import pandas as pd

    rows = [_number(board, row, column, cell) for row in board.rows for column, cell in row.cells.items()]
    frame = pd.DataFrame(rows, columns=list(NUMBERS))
    return frame.astype({"count": "Int64", "peak_memory": "Int64"})


def _number(board: Leaderboard, row: Row, column: Column, cell: Estimate) -> dict[str, Any]:
    images, threat = column.images, column.threat
    contents = board.cells.get((row.checkpoint.sha256, column))  # none of published numbers
    own = (
        contents is not None and contents.evaluation.kind == column.kind
    )  # clean accuracy may come from the run of an attack
    return {
        "network": row.label,
        "sha256": row.checkpoint.sha256,
        "dataset": images.name,
        "split": images.split,
        "images": images.chosen or "first",
        "n": images.n,
        "precision": column.precision,
        "group": column.group,
        "protocol": column.protocol,
        "norm": threat.norm if threat else None,
        "epsilon": radius_text(threat.epsilon) if threat else None,
        "sigma": column.sigma,
        "radius": column.radius,
        "metric": column.metric,
        **cell.as_json(),
        "interval": cell.method,
        "seconds": contents.seconds if contents and own else None,
        "peak_memory": contents.evaluation.peak_memory if contents and own else None,
        "column": column.key,
    }


def networks(board: Leaderboard) -> pd.DataFrame:
    """Return one row a network, indexed by its label, in order; see `Row` and `EvaluatedNetwork`."""
    import pandas as pd

    rows = [{name: getattr(row.checkpoint, name) for name in ABOUT} for row in board.rows]
    frame = pd.DataFrame(rows, columns=list(ABOUT), index=[row.label for row in board.rows]).rename_axis("network")
    frame.insert(0, "group", [row.group for row in board.rows])
    frame.insert(1, "best_rank", [row.rank[0] if row.rank else None for row in board.rows])
    frame.insert(2, "worst_rank", [row.rank[1] if row.rank else None for row in board.rows])
    return frame.astype({**dict.fromkeys(WHOLE, "Int64"), "density": "float64", "additional_data": "boolean"})


def columns(board: Leaderboard) -> pd.DataFrame:
    """Return one row a column, indexed by its key, in order: group, heading, and what all its numbers share."""
    import pandas as pd

    names = headings(board)
    rows = [
        {
            "column": column.key,
            "group": column.group,
            "heading": names[column],
            "dataset": column.images.name,
            "split": column.images.split,
            "n": column.images.n,
            "images": column.images.chosen or "first",
            "precision": column.precision,
            "protocol": column.protocol,
            "metric": column.metric,
            "norm": column.threat.norm if column.threat else None,
            "epsilon": radius_text(column.threat.epsilon) if column.threat else None,
            "sigma": column.sigma,
            "radius": column.radius,
        }
        for column in board.columns
    ]
    return pd.DataFrame(rows).set_index("column")


def records(board: Leaderboard) -> pd.DataFrame:
    """Return the records of all ledgers, one row an image of a run: what each says, and which run it is.

    run: path of its folder. Other columns are as in `numbers` and in the records; a field that a record has not is
    empty.
    """
    import pandas as pd

    labels = {row.checkpoint.sha256: row.label for row in board.rows}
    frames = []
    for one in board.evaluations:
        about = {
            "run": str(one.path),
            "network": labels.get(one.checkpoint.sha256, one.checkpoint.name),
            "sha256": one.checkpoint.sha256,
            "dataset": one.images.name,
            "split": one.images.split,
            "precision": one.precision,
            "protocol": one.protocol,
            "norm": one.threat.norm if one.threat else None,
            "epsilon": radius_text(one.threat.epsilon) if one.threat else None,
            "sigma": float(one.settings["sigma"]) if "sigma" in one.settings else None,
        }
        frames.append(one.frame.assign(**about)[[*about, *one.fields]])
    return pd.concat(frames, ignore_index=True)


def shown(board: Leaderboard) -> pd.DataFrame:
    """Return the leaderboard as people read it: texts, a column for each entry of `described` and each number.

    Columns have two levels, group and heading; those about the network have the group "".
    """
    import pandas as pd

    names = headings(board)
    about = described(board)
    rows = []
    for row in board.rows:
        cells = {("", name): about.at[row.label, name] for name in about.columns}
        for column in board.columns:
            cells[column.group, names[column]] = " ".join(cell_text(row.cells.get(column))).strip()
        rows.append(cells)
    frame = pd.DataFrame(rows, index=[named(row) for row in board.rows])
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame


def named(row: Row) -> str:
    """Return what a network is called in the leaderboard, with a dagger if the test images chose its epoch."""
    return row.label + " †" * (row.checkpoint.selection == "test")


def described(board: Leaderboard) -> pd.DataFrame:
    """Return what the leaderboard says of each network beside its name, as texts; `alike` has what is the same of all.

    Ranks are those within a group. A parent is named if it is in the leaderboard or one of its `ancestors`, else by the
    beginning of its hash.
    """
    import pandas as pd

    labels = {**board.ancestors, **{row.checkpoint.sha256: row.label for row in board.rows}}
    frame = pd.DataFrame([_described(row, labels) for row in board.rows], index=[row.label for row in board.rows])
    optional = ["data set"] if len(board.score) < 2 else []
    optional += [name for name in OPTIONAL if frame[name].nunique() == 1]
    optional += [name for name in MEASURED if (frame[name] == MISSING).all()]
    return frame.drop(columns=optional)


def alike(board: Leaderboard) -> str:
    """Return what is known and the same of all networks, so that it needs no column: "seed 0, chosen on validation"."""
    first = _described(board.rows[0], {})
    every = [_described(row, {}) for row in board.rows]
    names = [name for name in OPTIONAL if name != "parent" and len({one[name] for one in every}) == 1]
    return ", ".join(f"{name} {first[name]}" for name in names if first[name] != MISSING)


def _described(row: Row, labels: Mapping[str, str]) -> dict[str, str]:
    about = row.checkpoint
    nonzero = f"{_known(about.nonzero_parameters, ',')} of {_known(about.parameters, ',')}"
    parent = MISSING if about.parent is None else labels.get(about.parent, about.parent[:8])
    return {
        "rank": rank_text(row.rank),
        "data set": ", ".join(sorted({column.images.name for column in row.cells})),
        "arch": about.arch,
        "objective": about.objective,
        "density": _known(about.density, "g"),
        "nonzero": MISSING if about.parameters is None else nonzero,
        "size": size_text(about.size),
        "additional data": {None: MISSING, True: "yes", False: "no"}[about.additional_data],
        "chosen on": about.selection or MISSING,
        "parent": parent,
        "seed": _known(about.seed, "d"),
    }


def _known(value: float | None, style: str) -> str:
    return MISSING if value is None else format(value, style)


def cell_text(estimate: Estimate | None) -> tuple[str, str]:
    """A number and its interval as a reader sees them: ("93.4", "[90.9, 95.3]"), or a dash and nothing.

    Fractions are shown in percent with one decimal, mean radii in pixel units with three.
    """
    if estimate is None:
        return MISSING, ""
    if estimate.method in ("none", "mean"):
        return (f"{estimate.value:.1%}"[:-1] if estimate.method == "none" else f"{estimate.value:.3f}"), ""
    if estimate.count is None:
        high = f"{estimate.high:.3f}]" if estimate.as_json()["high"] is not None else "∞)"
        return f"{estimate.value:.3f}", f"[{estimate.low:.3f}, {high}"
    return f"{estimate.value:.1%}"[:-1], f"[{estimate.low * 100:.1f}, {estimate.high * 100:.1f}]"


def as_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON has them: what is not known is None."""
    return [dict(zip(frame.columns, row, strict=True)) for row in zip(*map(_plain, frame.items()), strict=True)]


def _plain(item: tuple[Any, pd.Series]) -> list[Any]:
    _, values = item
    return values.astype(object).where(values.notna(), None).tolist()  # type: ignore[no-any-return]
