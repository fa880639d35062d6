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
    model_infos,
    parquet,
    summary_json,
    table_names,
    table_text,
)
from hydrabench.reporting.cells import Meeting
from hydrabench.reporting.evaluations import Evaluation
from hydrabench.workflows.progress import say

_FILES: dict[str, tuple[str, Callable[[Leaderboard], str | bytes]]] = {
    "md": ("leaderboard.md", markdown),
    "csv": ("leaderboard.csv", csv_text),
    "json": ("summary.json", lambda board: json_text(summary_json(board))),
    "latex": ("leaderboard.tex", latex),
    "parquet": ("records.parquet", parquet),
}
REPORT_FORMATS = ("md", "csv", "json", "latex")  # what is written unless something else is asked for
# Formats of one file for each run that they know, by its path below the folder of the report.
_FILES_OF_RUNS: dict[str, Callable[[Sequence[Evaluation]], dict[str, str]]] = {
    "tsv": lambda runs: {name: table_text(run) for name, run in table_names(runs).items()},
    "robustbench": lambda runs: {f"model_info/{name}": json_text(info) for name, info in model_infos(runs).items()},
}


def write_report(
    paths: Sequence[Path],
    out: Path,
    formats: Sequence[str] = REPORT_FORMATS,
    *,
    imports: Sequence[tuple[str, str]] = (),
    n: Meeting = "common",
    sort: str = "",
    group_by: str = "density",
) -> Leaderboard:
    """Make the leaderboard of the runs in `paths` and write it to `out`; nothing is written if it is refused.

    Args:
        paths: run folders, or folders with run folders anywhere below; training runs are skipped.
        out: folder for the files, made if needed; those of an earlier report are replaced.
        formats: which files to write: md, csv, json, latex, parquet, tsv, robustbench.
        imports: files of other tools: (key of `IMPORTS`, what that reader takes).
        n: how many images a column is about, see `cells.gather`. sort, group_by: see `ranking.arrange`.
    Raises:
        ConfigError: unknown format, or an import that is not described.
        LedgerError: a path holds no run, a ledger cannot be used, or `out` is a run folder or a file.
        GateError: an image is verified in one ledger and broken in another.
    """
    for name in formats:
        lookup("report format", {**_FILES, **_FILES_OF_RUNS}, name)
    readers = [(lookup("import", IMPORTS, kind), text) for kind, text in imports]
    if (out / "run.json").exists():
        raise LedgerError(f"{out} is a run folder, whose summary a report would replace; choose another --out")
    if out.exists() and not out.is_dir():
        raise LedgerError(f"{out} is a file; --out names a folder")
    runs = find_runs(paths)
    imported = [read(text) for read, text in readers]
    for (kind, text), one in zip(imports, imported, strict=True):
        if one.skipped:
            reasons = ", ".join(f"{count} {why}" for why, count in one.skipped.items())
            say(f"--import {kind} {text}: {len(one.evaluations)} tables; skipped: {reasons}")
    evaluations = [evaluation for one in imported for evaluation in one.evaluations]
    external = [row for one in imported for row in one.rows]
    board = build_leaderboard(runs, evaluations, n=n, external=external, sort=sort, group_by=group_by)
    rendered: dict[str, str | bytes] = {_FILES[name][0]: _FILES[name][1](board) for name in formats if name in _FILES}
    for files in (_FILES_OF_RUNS[name] for name in formats if name in _FILES_OF_RUNS):
        rendered |= files(board.evaluations)
    with writing(out):
        write_together(out, rendered)
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
