"""From ledgers to leaderboards: intervals, checks, contradictions, and tables. No torch here.

`statistics` turns records into numbers with intervals, `evaluations` reads and checks run folders,
`contradictions` refuses those that contradict each other, `sandwich` says which images are neither verified nor broken,
`cells` and `leaderboard` arrange the numbers in `columns` and rows, `frames` makes tables of pandas of them, `legend`
and `tables` write those down. `external` says what an import brings, `imports` which formats are read (`cohen` and
`cohen_import`, `papers`, `robustbench`), `published` shows numbers without records. `baseline` keeps ledgers small,
`comparison` is the gate that compares runs with them, `gate_text` what it says. Nothing here writes a file.
"""

from hydrabench.reporting.cohen import table_names, table_text
from hydrabench.reporting.columns import Column
from hydrabench.reporting.evaluations import read_evaluations
from hydrabench.reporting.external import ExternalNumber, ExternalRow, Imported
from hydrabench.reporting.imports import IMPORTS
from hydrabench.reporting.leaderboard import Leaderboard, build_leaderboard
from hydrabench.reporting.legend import headings
from hydrabench.reporting.robustbench import model_infos
from hydrabench.reporting.rows import Row
from hydrabench.reporting.statistics import Estimate, clopper_pearson, mean_interval, summarize, wilson
from hydrabench.reporting.tables import comparison_lines, csv_text, latex, markdown, parquet, rich_tables, summary_json

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
    "comparison_lines",
    "csv_text",
    "headings",
    "latex",
    "markdown",
    "mean_interval",
    "model_infos",
    "parquet",
    "read_evaluations",
    "rich_tables",
    "summarize",
    "summary_json",
    "table_names",
    "table_text",
    "wilson",
]
