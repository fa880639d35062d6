"""The commands `baseline` and `gate`: from run folders to the files of a baseline, and what changed since."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from hydrabench.errors import ConfigError, HydrabenchError, LedgerError
from hydrabench.files import replacing
from hydrabench.ledger import writing
from hydrabench.reporting import read_evaluations
from hydrabench.reporting.baseline import CONTENTS_FILE, baseline_files, ledger_of, read_baseline
from hydrabench.reporting.comparison import ALPHA, GateVerdict, Refusal, Tolerance, compare
from hydrabench.threat import read_number
from hydrabench.workflows.reporting import find_runs


def write_baseline(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write a baseline of the runs in `paths`; that of an earlier call is replaced.

    Args: paths: run folders, or folders with run folders below them. out: a folder, made if needed.
    Returns: the number of ledgers, records and bytes.
    Raises: LedgerError if a run cannot be used, two are about the same, or `out` holds something else.
    """
    _require_baseline(out)
    runs = find_runs(paths)
    evaluations = read_evaluations(runs)
    environments = {run.path: run.environment for run in runs}
    files = baseline_files(evaluations, environments)
    with writing(out):
        for name, content in files.items():  # the manifest last, which names the others by their hashes
            with replacing(out / name) as scratch:
                scratch.write_bytes(content)
        for old in out.glob("*.jsonl.gz"):
            if old.name not in files:
                old.unlink()
    records = sum(len(evaluation.records) for evaluation in evaluations)
    return {"ledgers": len(evaluations), "records": records, "bytes": sum(map(len, files.values()))}


def _require_baseline(out: Path) -> None:
    """Raise LedgerError for a place that is neither new nor a baseline."""
    if out.exists() and not out.is_dir():
        raise LedgerError(f"{out} is a file; --out names a folder")
    strangers = sorted(path.name for path in out.glob("[!.]*")) if out.is_dir() else []
    if strangers and CONTENTS_FILE not in strangers:
        raise LedgerError(f"{out} holds {strangers[0]} and is no baseline; choose another --out")


def gate_runs(
    paths: Sequence[Path],
    against: Path,
    *,
    max_drop: str | float | None = None,
    metric: str | None = None,
    alpha: float = ALPHA,
) -> GateVerdict:
    """Compare runs with a baseline; what cannot be read is no error here, but cannot be compared.

    Args:
        paths: run folders, or folders with run folders below them.
        against: a baseline, or folders of runs.
        max_drop: "0.5pt" for half a percentage point, or a fraction in [0, 1]; None: no image may be lost.
        metric, alpha: see `compare`.
    Raises: ConfigError for a drop or an alpha that is none.
    """
    tolerance = Tolerance(None if max_drop is None else parse_drop(max_drop), alpha)
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha {alpha} is no probability in (0, 1); write for example 0.01")
    about: object = against
    try:
        is_baseline = (against / CONTENTS_FILE).exists() or not any(against.glob("**/run.json"))
        baseline = read_baseline(against) if is_baseline else [*map(ledger_of, read_evaluations(find_runs([against])))]
        about = ", ".join(map(str, paths))
        runs = [ledger_of(one) for one in read_evaluations(find_runs(paths))]
    except HydrabenchError as error:
        return GateVerdict(tolerance, (), (Refusal(str(about), str(error)),))
    return compare(runs, baseline, tolerance, metric=metric)


def parse_drop(text: str | float) -> Fraction:
    """Read how much of a number may be lost: "0.5pt" is 0.5 percentage points, a float a fraction.

    Raises: ConfigError that says what was read and what to write instead.
    """
    found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,9})?)\s*pt", text.strip()) if isinstance(text, str) else None
    number = found[1] if found else "" if isinstance(text, str) else text
    drop = read_number(number)
    if drop is not None and found:
        drop /= 100
    if drop is None or not 0 <= drop <= 1:
        raise ConfigError(f"max-drop {text!r} is no drop; write 0.5pt for half a percentage point")
    return drop
