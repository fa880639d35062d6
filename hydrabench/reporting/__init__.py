"""From ledgers to leaderboards: intervals, checks, the contradiction gate, and tables. No torch here.

`statistics` turns records into numbers with intervals, `evaluations` reads and checks run folders,
`gate` refuses ledgers that contradict each other, `leaderboard` arranges the numbers in rows and
columns, `legend` and `tables` write them down. `external` says what an import brings, `imports` which formats
are read, `cohen` is one of them. Nothing here writes a file.
"""

from hydrabench.reporting.cohen import table_names, table_text
from hydrabench.reporting.evaluations import read_evaluations
from hydrabench.reporting.external import ExternalNumber, ExternalRow, Imported
from hydrabench.reporting.imports import IMPORTS
from hydrabench.reporting.leaderboard import Column, Leaderboard, Row, build_leaderboard
from hydrabench.reporting.legend import headings
from hydrabench.reporting.statistics import Estimate, clopper_pearson, mean_interval, summarize, wilson
from hydrabench.reporting.tables import csv_text, markdown, rich_tables, summary_json

__all__ = [
    "IMPORTS",
    "Column",
    "Estimate",
    "ExternalNumber",
    "ExternalRow",
    "Imported",
    "Leaderboard",
    "Row",
    "build_leaderboard",
    "clopper_pearson",
    "csv_text",
    "headings",
    "markdown",
    "mean_interval",
    "read_evaluations",
    "rich_tables",
    "summarize",
    "summary_json",
    "table_names",
    "table_text",
    "wilson",
]
