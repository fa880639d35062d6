"""The formats that `hydrabench report --import` reads: one reader each, from what the option says to `Imported`."""

from __future__ import annotations

from collections.abc import Callable

from hydrabench.reporting.cohen_import import read_tables
from hydrabench.reporting.external import Imported
from hydrabench.reporting.papers import read_papers
from hydrabench.reporting.robustbench import read_model_infos

IMPORTS: dict[str, Callable[[str], Imported]] = {
    "cohen": read_tables,
    "papers": read_papers,
    "robustbench": read_model_infos,
}
