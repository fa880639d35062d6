"""Attack and certify checkpoints that come with hydrabench, for digits and for CIFAR-10, and print the leaderboard.

    python examples/demo.py [FOLDER]        # FOLDER holds the ledgers and the report; default reports/demo

Every number is computed here and now; what an earlier demo left in FOLDER is removed first.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see hydrabench/process.py
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

from rich.console import Console

from hydrabench.data.cifar import sample_of_cifar10
from hydrabench.evaluators import PgdSettings, SmoothingSettings, VerifiedSettings
from hydrabench.reporting import rich_tables
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import Subject, open_subject
from hydrabench.workflows.evaluation.run_folders import run_name
from hydrabench.workflows.reporting import REPORT_FORMATS, write_report
from hydrabench.workflows.run_options import RunOptions

DIGITS = (
    PgdSettings(epsilon="16/255"),
    VerifiedSettings(kind="crown-ibp", epsilon="16/255"),
    SmoothingSettings(sigma=0.12, samples=10_000, radii=(0.1, 0.2)),
)
CIFAR10 = (PgdSettings(epsilon="2/255"), VerifiedSettings(kind="crown-ibp", epsilon="2/255"))
EVALUATIONS = {
    **dict.fromkeys(("digits-crown-ibp", *(f"digits-crown-ibp-{pruned}" for pruned in (90, 95, 99))), DIGITS),
    **dict.fromkeys(("cifar10-crown-ibp-90", "cifar10-crown-ibp-99"), CIFAR10),
}
OPTIONS = RunOptions(device="cpu")


def subject_of(ref: str) -> Subject:
    """Open a network; one of CIFAR-10 is judged on the 200 images that come with hydrabench, whatever else is here."""
    subject = open_subject(ref, options=OPTIONS)
    return replace(subject, images=sample_of_cifar10()) if subject.checkpoint.header.dataset == "cifar10" else subject


def main(folder: Path) -> None:
    """Run every evaluation on every checkpoint, then report."""
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    for ref, evaluations in EVALUATIONS.items():
        for settings in evaluations:
            evaluate(subject_of(ref), settings, folder / "runs" / ref / run_name(settings), options=OPTIONS)
    leaderboard = write_report([folder / "runs"], folder, REPORT_FORMATS)
    console = Console()
    console.width = max(console.width, 120)
    console.print(*rich_tables(leaderboard, console.width))
    print(f"{time.monotonic() - started:.0f} s; report: {folder / 'index.html'}, and leaderboard.md, .csv, .tex")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("reports/demo"))
