"""Tables of comparisons: HYDRA and LWM, pairs of networks in a group, groups as a whole, several seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrabench.reporting.columns import Column, titles
from hydrabench.reporting.leaderboard import Leaderboard
from hydrabench.reporting.rows import Row
from hydrabench.reporting.significance import (
    FAMILY_ERROR,
    cochran,
    holm,
    mcnemar_p,
    paired_counts,
    pairs_of,
    tango_interval,
)

if TYPE_CHECKING:
    import pandas as pd

FIELDS_OF_PAIRS = (
    "family",
    "group",
    "column",
    "first",
    "second",
    "first_value",
    "second_value",
    "n",
    "both",
    "first_only",
    "second_only",
    "neither",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
)
SEEDED = ("networks", "column", "seeds", "mean", "low", "high", "worst")


def twins(board: Leaderboard) -> pd.DataFrame:
    """Return one row for each network pruned by HYDRA whose least-weight-magnitude twin is in the leaderboard, too.

    Twins are networks of one recipe, architecture, density and seed. They are compared in the column that ranks their
    data set; the rows are one family. `first` is HYDRA's network, `second` the twin.
    """
    return _compared(board, "hydra-lwm", _twins(board))


def pairs(board: Leaderboard) -> pd.DataFrame:
    """Return one row for each pair of networks of a group, in the column that ranks them; all rows are one family."""
    return _compared(board, "ranks", _pairs(board))


def significance(board: Leaderboard) -> pd.DataFrame:
    """Return the comparisons of both families, one row each.

    first_value, second_value: fractions in [0, 1] of n images. both, first_only, second_only, neither: how many images
    hold for whom. difference, low, high: of the fractions, with Tango's 95 % interval. p: of the exact two-sided
    McNemar test; p_holm: adjusted for the family.
    """
    import pandas as pd

    parts = [part for part in (twins(board), pairs(board)) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else twins(board)


def _compared(board: Leaderboard, family: str, found: Iterator[tuple[Row, Row, Column]]) -> pd.DataFrame:
    import pandas as pd

    names = titles(board.columns, board.protocols)
    rows = [{"family": family, **_comparison(board, a, b, column, names[column])} for a, b, column in found]
    frame = pd.DataFrame(rows, columns=list(FIELDS_OF_PAIRS))
    return frame.assign(p_holm=holm(frame["p"].tolist()))


def _comparison(board: Leaderboard, first: Row, second: Row, column: Column, title: str) -> dict[str, Any]:
    counts = paired_counts(*(board.cells[row.checkpoint.sha256, column].values for row in (first, second)))
    low, high = tango_interval(counts.first, counts.second, counts.n)
    return {
        "group": first.group,
        "column": title,
        "first": first.label,
        "second": second.label,
        "first_value": first.cells[column].value,
        "second_value": second.cells[column].value,
        "n": counts.n,
        "both": counts.both,
        "first_only": counts.first,
        "second_only": counts.second,
        "neither": counts.neither,
        "difference": counts.difference,
        "low": low,
        "high": high,
        "p": mcnemar_p(counts.first, counts.second),
    }


def _twins(board: Leaderboard) -> Iterator[tuple[Row, Row, Column]]:
    lwm = {_breed(row): row for row in board.rows if row.checkpoint.phase == "lwm"}
    for row in board.rows:
        twin = lwm.get(_breed(row)) if row.checkpoint.phase == "finetune" and row.checkpoint.recipe else None
        for column in board.score.values() if twin else ():
            if twin and column.interval != "t" and _both(board, row, twin, column):
                yield row, twin, column


def _both(board: Leaderboard, first: Row, second: Row, column: Column) -> bool:
    """Return whether there are verdicts of two networks in a column."""
    return all((row.checkpoint.sha256, column) in board.cells for row in (first, second))


def _breed(row: Row) -> tuple[Any, ...]:
    about = row.checkpoint
    return about.recipe, about.arch, about.objective, about.density, about.seed


def _pairs(board: Leaderboard) -> Iterator[tuple[Row, Row, Column]]:
    for column, group in groups(board):
        yield from ((group[i], group[j], column) for i, j in pairs_of(len(group)))


def groups(board: Leaderboard) -> Iterator[tuple[Column, list[Row]]]:
    """Yield the networks of each group that have the number that ranks them, where per-image verdicts rank them."""
    for column in board.score.values():
        found: dict[str, list[Row]] = defaultdict(list)
        for row in board.rows:
            if (row.checkpoint.sha256, column) in board.cells and column.interval != "t":
                found[row.group].append(row)
        yield from ((column, group) for group in found.values() if len(group) > 1)


def cochran_table(board: Leaderboard) -> pd.DataFrame:
    """Return Cochran's Q of each group: whether its networks differ at all; p_holm: adjusted for these rows."""
    import pandas as pd

    names = titles(board.columns, board.protocols)
    rows = []
    for column, group in groups(board):
        statistic, freedom, p = cochran([board.cells[row.checkpoint.sha256, column].values for row in group])
        about = {"group": group[0].group, "column": names[column], "networks": len(group), "n": column.images.n}
        rows.append({**about, "q": statistic, "df": freedom, "p": p})
    frame = pd.DataFrame(rows, columns=["group", "column", "networks", "n", "q", "df", "p"])
    return frame.assign(p_holm=holm(frame["p"].tolist()))


def seeds(board: Leaderboard) -> pd.DataFrame:
    """Return one row for each number of networks that differ in their seed alone.

    mean, low, high: over seeds, with Student's 95 % interval, which speaks about other seeds on these images; the
    intervals of the leaderboard speak about other images. worst: of the seeds.
    """
    import pandas as pd

    names = titles(board.columns, board.protocols)
    families: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in board.rows:
        if row.checkpoint.recipe and row.checkpoint.seed is not None:
            families[(row.checkpoint.phase, *_breed(row)[:-1])].append(row)
    rows = []
    for family in families.values():
        if len({row.checkpoint.seed for row in family}) < 2:
            continue
        for column in board.columns:
            values = [float(row.cells[column].value) for row in family if column in row.cells]
            if len(values) > 1:
                label = ", ".join(row.label for row in family)
                rows.append({"networks": label, "column": names[column], "seeds": len(values), **_over(values, column)})
    return pd.DataFrame(rows, columns=list(SEEDED))


def _over(values: Sequence[float], column: Column) -> dict[str, float]:
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    half = float(t.isf(FAMILY_ERROR / 2, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    top = math.inf if column.interval == "t" else 1.0
    worst = max(values) if column.metric == "undecided" else min(values)
    return {"mean": mean, "low": max(0.0, mean - half), "high": min(top, mean + half), "worst": worst}


def comparisons(board: Leaderboard) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yield the tables of comparisons that a reader sees, of texts, each with its title and a note; no empty ones."""
    found = twins(board)
    if len(found):
        yield (
            "HYDRA and least-weight-magnitude pruning",
            _twins_shown(found),
            (
                "Each line compares the two on the same images: difference in percentage points with Tango's 95 % "
                "interval, exact two-sided McNemar p, and p after Holm's correction for the family of these "
                f"{_tests(len(found))}."
            ),
        )
    found = cochran_table(board)
    if len(found):
        yield (
            "Do the networks of a group differ?",
            _cochran_shown(found),
            (
                "Cochran's Q tests whether all networks of a group are right on equally many images. Ranks come from "
                f"exact McNemar tests of all pairs within the groups, with Holm's correction for the family of these "
                f"{_tests(board.tests)}: with probability 95 % all ranges of ranks hold at once."
            ),
        )
    found = seeds(board)
    if len(found):
        yield (
            "Several seeds",
            _seeds_shown(found),
            (
                "Mean and Student's 95 % interval over seeds, on the same images: what another seed would give. The "
                "intervals of the leaderboard say what other images would give."
            ),
        )


def _tests(count: int) -> str:
    return f"{count} test{'s' * (count != 1)}"


def _twins_shown(found: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "HYDRA": found["first"],
            "LWM": found["second"],
            "column": found["column"],
            "HYDRA %": found["first_value"].map(_percent),
            "LWM %": found["second_value"].map(_percent),
            "difference": found["difference"].map(points),
            "95 %": [f"[{points(low)}, {points(high)}]" for low, high in zip(found["low"], found["high"], strict=True)],
            "p": found["p"].map(p_text),
            "p (Holm)": found["p_holm"].map(p_text),
        }
    )


def _cochran_shown(found: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "group": found["group"],
            "column": found["column"],
            "networks": found["networks"].map(str),
            "Q": found["q"].map("{:.1f}".format),
            "p": found["p"].map(p_text),
            "p (Holm)": found["p_holm"].map(p_text),
        }
    )


def _seeds_shown(found: pd.DataFrame) -> pd.DataFrame:
    shown = found.assign(seeds=found["seeds"].map(str))
    for name in ("mean", "low", "high", "worst"):
        shown[name] = found[name].map("{:.4f}".format)
    return shown


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """Write a difference of fractions in percentage points: "+2.5"."""
    return f"{100 * value:+.1f}"


def p_text(p: float) -> str:
    """Write a p-value with two digits: "0.27", "3e-17"."""
    return f"{p:.2g}" if p < 0.995 else "1"
