"""The command report as a function: the leaderboard of runs as a table of pandas."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from hydrabench.api.runs import Runs, folders_of
from hydrabench.reporting import Leaderboard, build_leaderboard, headings, latex, markdown
from hydrabench.reporting.figures import figures
from hydrabench.reporting.frames import numbers
from hydrabench.reporting.page import html_page
from hydrabench.reporting.paired import significance
from hydrabench.reporting.weights import Material
from hydrabench.workflows.reporting import find_runs, write_report


@dataclass(frozen=True)
class Report:
    """A leaderboard: one row for each network, one column for each way of making a number."""

    leaderboard: Leaderboard = field(repr=False)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each network, by name: `density`, `nonzero_parameters`, and each number with its interval.

        A number is a fraction in [0, 1] or a mean L2 radius in pixel units. Its column is called as in the report,
        "PGD-50 L∞ 8/255"; the columns with " low" and " high" behind it are the ends of its 95 % interval.
        """
        names = headings(self.leaderboard)
        rows = {}
        for row in self.leaderboard.rows:
            about = row.checkpoint
            rows[row.label] = {"density": about.density, "nonzero_parameters": about.nonzero_parameters}
            for column, cell in row.cells.items():
                name = names[column]
                rows[row.label] |= {name: cell.value, f"{name} low": cell.low, f"{name} high": cell.high}
        order = [f"{names[column]}{end}" for column in self.leaderboard.columns for end in ("", " low", " high")]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=None)
        return table[["density", "nonzero_parameters", *order]].rename_axis("network")

    @cached_property
    def numbers(self) -> pd.DataFrame:
        """One row a number, as in `leaderboard.csv`; see `reporting.frames.numbers`."""
        return numbers(self.leaderboard)

    @cached_property
    def significance(self) -> pd.DataFrame:
        """Paired comparisons with Tango's interval and Holm's correction, see `reporting.paired.significance`."""
        return significance(self.leaderboard)

    def to_html(self) -> str:
        """The leaderboard as one page of HTML that needs no other file, with the figures that ledgers suffice for."""
        return html_page(self.leaderboard, figures(self.leaderboard, Material()))

    def to_latex(self) -> str:
        """The leaderboard as a table of LaTeX, for the package booktabs."""
        return latex(self.leaderboard)

    def to_markdown(self) -> str:
        """The whole leaderboard as a Markdown page, with how to read it and what the protocols are."""
        return markdown(self.leaderboard)

    def __repr__(self) -> str:
        return f"Report of {len(self.leaderboard.rows)} networks, {len(self.leaderboard.columns)} columns; see .table"


def report(runs: Runs, out: str | Path | None = None) -> Report:
    """Make the leaderboard of runs.

    Args:
        runs: runs of `attack` and `certify`, run folders, or folders with run folders below them; one or several.
        out: also write the report there, in the formats of `hydrabench report`.
    Raises: LedgerError if a run is incomplete, altered, or about other images than another; GateError if an image is
        verified in one run and broken in another.
    """
    paths = folders_of(runs)
    return Report(build_leaderboard(find_runs(paths)) if out is None else write_report(paths, Path(out)))
