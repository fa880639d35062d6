"""Make the reports that are kept in the repository, from the networks of the zoo.

    python tools/make_reports.py                    # reports/zoo: the digits, in minutes
    python tools/make_reports.py cifar10            # reports/cifar10-*: needs CIFAR-10 in HYDRABENCH_DATA, and an hour
    python tools/make_reports.py seeds              # reports/digits-seeds.csv: ten digits trainings, half an hour
    python tools/make_reports.py write              # reports/hydra-reproduction.md from the zoo and what is in reports/
    python tools/make_reports.py --runs RUNS NAME   # RUNS: where the ledgers lie (default runs/reports), resumed

On a CPU. Each report is written anew.
"""

from __future__ import annotations

import one_thread  # noqa: F401  # first: before torch is imported

# isort: split

import argparse
from collections.abc import Mapping
from pathlib import Path

from reproduction import train_seeds, write_up

from hydrabench.checkpoints import read_manifest
from hydrabench.evaluators import (
    AutoAttackSettings,
    EvaluationSettings,
    ExactSettings,
    PgdSettings,
    SmoothingSettings,
    VerifiedSettings,
)
from hydrabench.files import write_text
from hydrabench.workflows.evaluation.evaluate import evaluate
from hydrabench.workflows.evaluation.loading import open_subject
from hydrabench.workflows.evaluation.run_folders import run_name
from hydrabench.workflows.reporting import REPORT_FORMATS, write_report
from hydrabench.workflows.run_options import RunOptions

REPORTS = Path(__file__).resolve().parents[1] / "reports"
Evaluations = tuple[tuple[EvaluationSettings, int], ...]  # settings, and how many images
DIGITS: Evaluations = (
    (PgdSettings(epsilon="16/255"), 500),
    (VerifiedSettings(kind="ibp", epsilon="16/255"), 500),
    (VerifiedSettings(kind="crown-ibp", epsilon="16/255"), 500),
    (SmoothingSettings(sigma=0.12, samples=1000, radii=(0.0, 0.1, 0.2)), 100),
)
CIFAR10: Evaluations = (
    (PgdSettings(epsilon="2/255"), 1000),
    (PgdSettings(epsilon="8/255"), 1000),
    (VerifiedSettings(kind="cascade", epsilon="2/255"), 1000),
)
ATTACKED: Evaluations = (  # a security curve and AutoAttack
    *((PgdSettings(epsilon=f"{k}/255"), 1000) for k in (4, 12, 16)),
    (AutoAttackSettings(epsilon="8/255"), 500),
)
EXACT: Evaluations = ((ExactSettings(epsilon="2/255"), 1000),)
# By report: the data set it belongs to, the recipe of its networks (None: all), evaluations, and what ranks.
KEPT: Mapping[str, tuple[str, str | None, Evaluations, str]] = {
    "zoo": ("digits", None, DIGITS, "CROWN-IBP"),
    "cifar10-crown-ibp": ("cifar10", "cifar10-crown-ibp-cifar_model", CIFAR10 + EXACT, "cascade"),
    "cifar10-trades": ("cifar10", "cifar10-trades-cifar_model", CIFAR10 + ATTACKED, "PGD-50 L∞ 8/255"),
}


CHOICES = ("digits", "cifar10", "seeds", "write")


def main(runs: Path, wanted: list[str]) -> None:
    """Evaluate what is missing, and write what is wanted."""
    for name, (dataset, *_) in KEPT.items():
        if dataset in wanted:
            report(name, runs)
    if "seeds" in wanted:
        train_seeds(runs / "seeds", REPORTS)
    if "write" in wanted:
        write_text(REPORTS / "hydra-reproduction.md", write_up(REPORTS))


def report(name: str, runs: Path) -> None:
    """Evaluate the networks of one report, and write it."""
    dataset, recipe, evaluations, sort = KEPT[name]
    options = RunOptions(device="cpu")
    networks = [
        identity
        for identity, entry in read_manifest().items()
        if entry.dataset == dataset and recipe in (None, entry.recipe) and "-seed" not in identity
    ]
    for network in networks:
        for settings, n in evaluations:
            folder = runs / network / run_name(settings)
            evaluate(open_subject(network, options=options), settings, folder, options=options, n=n, resume=True)
    write_report([runs / network for network in networks], REPORTS / name, REPORT_FORMATS, sort=sort)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "datasets", nargs="*", default=["digits"], choices=CHOICES, metavar="NAME", help=", ".join(CHOICES)
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/reports"))
    given = parser.parse_args()
    main(given.runs, given.datasets)
