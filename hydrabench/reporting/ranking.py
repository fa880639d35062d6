"""The order of a leaderboard: groups, the column that ranks within them, and ranks as ranges."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydrabench.errors import ConfigError, lookup, shortened
from hydrabench.reporting.cells import Cell
from hydrabench.reporting.columns import PUBLISHED, Column
from hydrabench.reporting.rows import Row
from hydrabench.reporting.significance import holm, mcnemar_p, paired_counts, pairs_of, rank_ranges

# What ranks a leaderboard unless something else is asked for: of the columns that most rows have, the first of these.
# Clean accuracy ranks only where there is nothing else.
PREFERRED = ("attacked", "verified", "certified", "smoothed, attacked", "clean")
GROUPINGS: dict[str, Callable[[Row], Any]] = {
    "density": lambda row: row.checkpoint.density,
    "arch": lambda row: row.checkpoint.arch,
    "dataset": lambda _row: "",  # rows of one data set always stand together
}


@dataclass(frozen=True)
class Arrangement:
    """rows: in order, with ranks. score: the column of each data set that ranks them. tests: of the ranks, per pair."""

    rows: tuple[Row, ...]
    score: Mapping[str, Column]
    tests: int


def arrange(
    rows: Sequence[Row],
    columns: Sequence[Column],
    cells: Mapping[tuple[str, Column], Cell],
    *,
    titles: Mapping[Column, str],
    sort: str = "",
    group_by: str = "density",
) -> Arrangement:
    """Order rows: by data set, by group (densest first, names in alphabetical order), by score; ties by name.

    Ranks are ranges within a group. They come from all pairs in all groups, exact McNemar tests with Holm's
    correction: all ranges hold at once. Rows without the score have no rank and stand last.

    Args:
        titles: the heading of each column. sort: a heading, or a part of one; "": see `PREFERRED`.
    Raises: ConfigError if no column is called `sort`, or the grouping is not known.
    """
    key = lookup("grouping", GROUPINGS, group_by)
    score = {name: _score(name, rows, columns, titles, sort) for name in sorted({c.images.name for c in columns})}
    places: dict[tuple[str, Any], list[Row]] = defaultdict(list)
    for row in rows:
        places[_dataset(row), key(row)].append(row)
    groups = [places[place] for place in sorted(places, key=_place)]
    ranked, tests = _ranks(groups, score, cells)
    found = []
    for group in groups:
        name = f"{group_by} {_text(key(group[0]))}" if group_by != "dataset" else _dataset(group[0])
        for row in sorted(group, key=lambda row: (-_value(row, score), row.label, row.checkpoint.sha256)):
            found.append(replace(row, rank=ranked.get(row.checkpoint.sha256), group=name))
    return Arrangement(tuple(found), score, tests)


def _text(value: Any) -> str:
    """A density as it is written, 1 and not 1.0; other values as they are, what nobody said as "unknown"."""
    if value is None:
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _place(place: tuple[str, Any]) -> tuple[Any, ...]:
    """Sort key of a group: numbers fall, names rise, what is not known comes last."""
    name, key = place
    number = -key if isinstance(key, float) else 0.0
    return name, key is None, number, key if isinstance(key, str) else ""


def _dataset(row: Row) -> str:
    return min(column.images.name for column in row.cells)


def _value(row: Row, score: Mapping[str, Column]) -> float:
    cell = row.cells.get(score[_dataset(row)])
    return -1.0 if cell is None else cell.value


def _score(
    dataset: str, rows: Sequence[Row], columns: Sequence[Column], titles: Mapping[Column, str], sort: str
) -> Column:
    """Choose the column by which the rows of a data set are ranked."""
    of_set = [column for column in columns if column.images.name == dataset and column.metric != "undecided"]
    if sort:
        named = [column for column in columns if sort.lower() in titles[column].lower()]
        if not named:
            listed = ", ".join(dict.fromkeys(titles[column] for column in columns))
            raise ConfigError(f"--sort {shortened(sort)} is part of no heading; the columns are {listed}")
        of_set = [column for column in of_set if column in named] or of_set
    of_set = [column for column in of_set if column.kind != PUBLISHED] or of_set
    of_set = [column for column in of_set if sort or column.group != "clean"] or of_set
    uses = Counter(column for row in rows for column in row.cells if column in of_set)
    most = max(uses.values())
    full = [column for column in of_set if uses[column] == most]
    return min(full, key=lambda column: (column.interval == "t", PREFERRED.index(column.group)))


def _ranks(
    groups: Sequence[Sequence[Row]], score: Mapping[str, Column], cells: Mapping[tuple[str, Column], Cell]
) -> tuple[dict[str, tuple[int, int]], int]:
    """Return the range of ranks of each network, by its hash, and how many tests they rest on."""
    scored = []
    for group in groups:
        column = score[_dataset(group[0])]
        held = [
            row.checkpoint.sha256
            for row in group
            if (row.checkpoint.sha256, column) in cells and column.interval != "t"
        ]
        scored.append([(sha, cells[sha, column].values) for sha in held])
    p_values = []
    for members in scored:
        for i, j in pairs_of(len(members)):
            counts = paired_counts(members[i][1], members[j][1])
            p_values.append(mcnemar_p(counts.first, counts.second))
    adjusted, found = iter(holm(p_values)), {}
    for members in scored:
        of_group = [next(adjusted) for _ in pairs_of(len(members))]
        ranges = rank_ranges([values for _, values in members], of_group)
        found.update({sha: one for (sha, _), one in zip(members, ranges, strict=True)})
    return found, len(p_values)


def rank_text(rank: tuple[int, int] | None) -> str:
    """Write a range of ranks: "1", "2–4"."""
    if rank is None:
        return "–"
    best, worst = rank
    return str(best) if best == worst else f"{best}–{worst}"
