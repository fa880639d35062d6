"""Make the report of the zoo that is kept in the repository: leaderboard, page and figures of the shipped networks.

    python tools/make_reports.py [RUNS]     # RUNS: where the ledgers lie (default runs/reports); they are resumed

Every network is attacked, bounded and smoothed on the digits test images, on a CPU; then reports/zoo is written anew.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see hydrabench/process.py
os.environ.setdefault("MKL_NUM_THREADS", "1")

from hydrabench.checkpoints import read_manifest
from hydrabench.evaluators import EvaluationSettings, PgdSettings, SmoothingSettings, VerifiedSettings
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from hydrabench.workflows.evaluation.run_folders import run_name
from hydrabench.workflows.reporting import REPORT_FORMATS, write_report
from hydrabench.workflows.run_options import RunOptions

REPORT = Path(__file__).resolve().parents[1] / "reports" / "zoo"
EPSILON = "16/255"
EVALUATIONS: tuple[tuple[EvaluationSettings, int], ...] = (  # settings, and how many images
    (PgdSettings(epsilon=EPSILON), 500),
    (VerifiedSettings(kind="ibp", epsilon=EPSILON), 500),
    (VerifiedSettings(kind="crown-ibp", epsilon=EPSILON), 500),
    (SmoothingSettings(sigma=0.12, samples=1000, radii=(0.0, 0.1, 0.2)), 100),
)


def main(runs: Path) -> None:
    """Evaluate what is missing, and write the report."""
    options = RunOptions(device="cpu")
    for name in read_manifest():
        for settings, n in EVALUATIONS:
            folder = runs / name / run_name(settings)
            evaluate(open_subject(name, options=options), settings, folder, options=options, n=n, resume=True)
    write_report([runs], REPORT, REPORT_FORMATS, sort="CROWN-IBP")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/reports"))
