"""From run folders to the files of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hydrabench.errors import LedgerError, lookup
from hydrabench.files import json_text, write_together
from hydrabench.ledger import RunFolder, read_run, writing
from hydrabench.reporting import (
    IMPORTS,
    Leaderboard,
    build_leaderboard,
    csv_text,
    latex,
    markdown,
    parquet,
    summary_json,
    table_names,
    table_text,
)
from hydrabench.reporting.cells import Meeting

_FILES: dict[str, tuple[str, Callable[[Leaderboard], str | bytes]]] = {
    "md": ("leaderboard.md", markdown),
    "csv": ("leaderboard.csv", csv_text),
    "json": ("summary.json", lambda board: json_text(summary_json(board))),
    "latex": ("leaderboard.tex", latex),
    "parquet": ("records.parquet", parquet),
}
REPORT_FORMATS = ("md", "csv", "json", "latex")  # what is written unless something else is asked for
TABLES = "tsv"  # one file for each smoothing run, see `reporting.cohen`


def write_report(
    paths: Sequence[Path],
    out: Path,
    formats: Sequence[str] = REPORT_FORMATS,
    *,
    imports: Sequence[tuple[str, str]] = (),
    n: Meeting = "common",
) -> Leaderboard:
    """Make the leaderboard of the runs in `paths` and write it to `out`; nothing is written if it is refused.

    Args:
        paths: run folders, or folders with run folders anywhere below; training runs are skipped.
        out: folder for the files, made if needed; those of an earlier report are replaced.
        formats: which files to write: md, csv, json, latex, parquet, and `TABLES`.
        imports: files of other tools: (key of `IMPORTS`, what that reader takes).
        n: how many images a column is about, see `cells.gather`.
    Raises:
        ConfigError: unknown format, or an import that is not described.
        LedgerError: a path holds no run, a ledger cannot be used, or `out` is a run folder or a file.
        GateError: an image is verified in one ledger and broken in another.
    """
    known = {**_FILES, TABLES: None}
    chosen = [found for found in (lookup("report format", known, name) for name in formats) if found is not None]
    readers = [(lookup("import", IMPORTS, kind), text) for kind, text in imports]
    if (out / "run.json").exists():
        raise LedgerError(f"{out} is a run folder, whose summary a report would replace; choose another --out")
    if out.exists() and not out.is_dir():
        raise LedgerError(f"{out} is a file; --out names a folder")
    runs = find_runs(paths)
    imported = [read(text) for read, text in readers]
    board = build_leaderboard(runs, [evaluation for one in imported for evaluation in one.evaluations], n=n)
    rendered: list[tuple[str, str | bytes]] = [(name, render(board)) for name, render in chosen]
    if TABLES in formats:
        rendered += [(name, table_text(run)) for name, run in table_names(board.evaluations).items()]
    with writing(out):
        write_together(out, dict(rendered))
    return board


def find_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """Read the run folders at and below `paths`, each once, sorted by path.

    Raises: LedgerError if a path does not exist, is a file, or holds no run, or a run is not readable.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            problem = "is a file" if path.exists() else "does not exist"
            raise LedgerError(f"{path} {problem}; give run folders, or folders that hold some")
        folders = [file.parent for file in path.rglob("run.json")]
        if not folders:
            raise LedgerError(f"{path} is not a run folder and holds none: no run.json in it or below")
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return [read_run(folder) for folder in sorted(found.values())]
