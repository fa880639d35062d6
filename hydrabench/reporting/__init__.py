"""From ledgers to leaderboards: intervals, checks, the contradiction gate, and tables. No torch here.

`statistics` turns records into numbers with intervals, `evaluations` reads and checks run folders,
`gate` refuses ledgers that contradict each other, `leaderboard` arranges the numbers in rows and
columns, `legend` and `tables` write them down. Nothing here writes a file.
"""

from hydrabench.reporting.leaderboard import Column, Leaderboard, Row, build_leaderboard
from hydrabench.reporting.statistics import Estimate, clopper_pearson, mean_interval, summarize, wilson
from hydrabench.reporting.tables import csv_text, markdown, rich_table, summary_json

__all__ = [
    "Column",
    "Estimate",
    "Leaderboard",
    "Row",
    "build_leaderboard",
    "clopper_pearson",
    "csv_text",
    "markdown",
    "mean_interval",
    "rich_table",
    "summarize",
    "summary_json",
    "wilson",
]
