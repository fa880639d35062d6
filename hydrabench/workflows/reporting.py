"""From run folders to the files of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hydrabench.checkpoints import read_manifest
from hydrabench.errors import GateError, LedgerError, lookup
from hydrabench.files import close_name, json_text, shipped, write_together
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
from hydrabench.reporting.contradictions import Contradiction, ContradictionError
from hydrabench.reporting.evaluations import COMMANDS, Evaluation
from hydrabench.reporting.external import Imported
from hydrabench.reporting.weights import Material
from hydrabench.workflows.pictures import contradiction_files, shown_examples
from hydrabench.workflows.progress import say

_FILES: dict[str, tuple[str, Callable[[Leaderboard], str | bytes]]] = {
    "md": ("leaderboard.md", markdown),
    "csv": ("leaderboard.csv", csv_text),
    "json": ("summary.json", lambda board: json_text(summary_json(board))),
    "latex": ("leaderboard.tex", latex),
    "parquet": ("records.parquet", parquet),
}
REPORT_FORMATS = ("md", "csv", "json", "latex", "html")  # what is written unless something else is asked for
CONTRADICTION = "contradiction"  # folder inside the report's that shows a contradiction again
HTML, PAGE, FOLDER = "html", "index.html", "figures"  # a format of a page, and of a folder of figures beside it
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
    """Make the leaderboard of the runs in `paths` and write it to `out`; no report is written if it is refused.

    Args:
        paths: run folders, or folders with run folders anywhere below; training runs are skipped.
        out: folder for the files, made if needed; those of an earlier report are replaced.
        formats: which files to write: md, csv, json, latex, html (with figures), parquet, tsv, robustbench.
        imports: files of other tools: (key of `IMPORTS`, what that reader takes).
        n: how many images a column is about, see `cells.gather`. sort, group_by: see `ranking.arrange`.
    Raises:
        ConfigError: unknown format, or an import that is not described.
        LedgerError: a path holds no run, a ledger cannot be used, or `out` is a run folder or a file.
        GateError: an image is verified in one ledger and broken in another; OUT/contradiction then shows it again.
    """
    for name in formats:
        lookup("report format", {**_FILES, **_FILES_OF_RUNS, HTML: None}, name)
    readers = [lookup("import", IMPORTS, kind) for kind, _ in imports]
    _require_place(out)
    runs = find_runs(paths)
    imported = [_imported(read, *given) for read, given in zip(readers, imports, strict=True)]
    board = _board(runs, imported, out / CONTRADICTION, n=n, sort=sort, group_by=group_by)
    board = replace(board, ancestors=_ancestors(board, runs))
    rendered = _contents(board, runs, formats)
    with writing(out):
        write_together(out, rendered)
        _remove_old_figures(out, rendered)
    return board


def _board(
    runs: Sequence[RunFolder],
    imported: Sequence[Imported],
    contradiction: Path,
    *,
    n: Meeting,
    sort: str,
    group_by: str,
) -> Leaderboard:
    """Build the leaderboard; if the runs contradict each other, write to `contradiction` and raise GateError."""
    evaluations = [evaluation for one in imported for evaluation in one.evaluations]
    external = [row for one in imported for row in one.rows]
    try:
        return build_leaderboard(runs, evaluations, n=n, external=external, sort=sort, group_by=group_by)
    except ContradictionError as error:
        folder = _write_reproducer(contradiction, error.contradictions[0])
        raise GateError(f"{error}; what shows it again is in {folder}") from error


def _require_place(out: Path) -> None:
    if (out / "run.json").exists():
        raise LedgerError(f"{out} is a run folder, whose summary a report would replace; choose another --out")
    if out.exists() and not out.is_dir():
        raise LedgerError(f"{out} is a file; --out names a folder")


def _imported(read: Callable[[str], Imported], kind: str, text: str) -> Imported:
    """Read what one `--import` names, and say what was passed over."""
    found = read(text)
    if found.skipped:
        reasons = ", ".join(f"{count} {why}" for why, count in found.skipped.items())
        say(f"--import {kind} {text}: {len(found.evaluations)} tables; skipped: {reasons}")
    return found


def _write_reproducer(folder: Path, found: Contradiction) -> Path:
    """Write what shows a contradiction again: records, commands, and the images that are at hand."""
    with writing(folder):
        write_together(folder, {**found.reproducer(), **contradiction_files(found)})
    return folder


def _contents(board: Leaderboard, runs: Sequence[RunFolder], formats: Sequence[str]) -> dict[str, str | bytes]:
    """Return the files of a report by path below its folder."""
    found: dict[str, str | bytes] = {_FILES[name][0]: _FILES[name][1](board) for name in formats if name in _FILES}
    for files in (_FILES_OF_RUNS[name] for name in formats if name in _FILES_OF_RUNS):
        found |= files(board.evaluations)
    return found | (_page(board, runs) if HTML in formats else {})


def _ancestors(board: Leaderboard, runs: Sequence[RunFolder]) -> dict[str, str]:
    """Name what networks were made from, by SHA-256: the folders of training runs, and the zoo's parents of its own.

    A network of the zoo may have been made from one that is not in it, such as the pruned one before fine-tuning; its
    parent is then the one in the zoo from which both come.
    """
    found = {sha256: file.parent.name for sha256, file in _trained(runs).items()}
    zoo = {entry.sha256: entry for entry in read_manifest().values()}
    for about in (row.checkpoint for row in board.rows):
        entry = zoo.get(about.sha256)
        if about.parent is not None and entry is not None and entry.parent is not None:
            found[about.parent] = entry.parent
    return found


def _remove_old_figures(out: Path, written: Mapping[str, object]) -> None:
    """Remove the figures of an earlier report that this one has not."""
    from hydrabench.reporting.figures import FIGURES, figure_files  # noqa: PLC0415

    if PAGE in written:
        for name in (one for figure in FIGURES for one in figure_files(figure)):
            if f"{FOLDER}/{name}" not in written:
                (out / FOLDER / name).unlink(missing_ok=True)


def _page(board: Leaderboard, runs: Sequence[RunFolder]) -> dict[str, str | bytes]:
    """Return the page and the files of its figures, by path below the folder of the report."""
    from hydrabench.reporting.figures import figures  # noqa: PLC0415  (matplotlib takes a second to import)
    from hydrabench.reporting.page import html_page  # noqa: PLC0415

    training = [run for run in runs if run.header.get("command") not in COMMANDS]
    pictures = figures(board, Material(_checkpoints(runs), training, shown_examples(board)))
    files = {f"{FOLDER}/{name}": content for one in pictures for name, content in one.files().items()}
    return {**files, PAGE: html_page(board, pictures)}


def _checkpoints(runs: Sequence[RunFolder]) -> dict[str, Path]:
    """Return the files of networks that are at hand, by SHA-256: those of the zoo, and of training runs."""
    folder = shipped("zoo")
    found = {entry.sha256: folder / entry.file for entry in read_manifest().values() if entry.sha256 and entry.file}
    return {**found, **_trained(runs)}


def _trained(runs: Sequence[RunFolder]) -> dict[str, Path]:
    """Return the checkpoints of finished training runs, by SHA-256."""
    training = [run for run in runs if run.header.get("command") not in COMMANDS and run.is_complete]
    named = ((run.summary().get("checkpoint_sha256"), run.path / "checkpoint.safetensors") for run in training)
    return {sha256: file for sha256, file in named if sha256}


def find_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """Read the run folders at and below `paths`, each once, sorted by path.

    Raises: LedgerError if a path does not exist, is a file, or holds no run, or a run is not readable.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            problem = "is a file" if path.exists() else "does not exist"
            raise LedgerError(f"{path} {problem}; give run folders, or folders that hold some{close_name(path)}")
        folders = [file.parent for file in path.rglob("run.json")]
        if not folders:
            raise LedgerError(f"{path} is not a run folder and holds none: no run.json in it or below")
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return [read_run(folder) for folder in sorted(found.values())]
