"""Objectives compared at equal time: one small network, trained from scratch by each, judged on the same images.

    python tools/objectives.py time certificates          # processor seconds of each training, objectives in turns
    python tools/objectives.py train certificates         # trains and judges what is missing, resumed
    python tools/objectives.py write                      # reports/training-objectives.md from what is there

Studies: certificates (L-inf 2/255, complete verification) and smoothing (sigma 0.25). Needs CIFAR-10 in
HYDRABENCH_DATA. On a CPU with one thread; `--runs` says where the runs lie (default runs/objectives).

Equal time means equal time on an idle core, whatever else the machine does while a network is trained: `time` measures
what the epochs of each objective cost, radii that grow included, on an eighth of the images. The numbers of epochs in
STUDIES are chosen by it.
"""

from __future__ import annotations

import one_thread  # noqa: F401  # first: before torch is imported

# isort: split

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import jinja2
import pandas as pd
from reproduction import table

import hydrabench as hb
from hydrabench.data.cifar import load_cifar10
from hydrabench.files import write_text
from hydrabench.reporting.significance import holm, mcnemar_p, paired_counts, tango_interval

TEXT = Path(__file__).parent / "training-objectives.md.j2"
REPORTS = Path(__file__).resolve().parents[1] / "reports"
PART = 8  # `time` trains on one image of so many


@dataclass(frozen=True)
class Study:
    """Objectives to compare: recipes with what they change, epochs that take equal time, and what judges."""

    objectives: Mapping[str, tuple[str, Mapping[str, Any]]]  # recipe, and what is changed in it; first the baseline
    epochs: Mapping[str, int]
    seconds: Mapping[str, float]  # processor seconds of these epochs, as `time` prints them
    evaluations: tuple[tuple[str, Mapping[str, Any]], ...]  # "attack" or "certify", and its arguments
    images: int
    columns: Mapping[str, Callable[[Mapping[str, pd.DataFrame]], pd.Series]]  # what of the records holds an image
    compared: tuple[str, ...]  # the columns in which objectives are compared with the first
    seeds: tuple[int, ...]


RADII = (0.0, 0.25, 0.5, 0.75)  # L2, pixel units


def _certified(radius: float) -> Callable[[Mapping[str, pd.DataFrame]], pd.Series]:
    def holds(records: Mapping[str, pd.DataFrame]) -> pd.Series:
        found = records["smoothing"]
        return (found["prediction"] == found["label"]) & (found["radius"] >= radius)

    return holds


MIXTRAIN = {"name": "mixtrain", "epsilon": "2/255", "samples": 5, "probability": 0.8, "weight": 0.1}
CERTIFIED, SMOOTHED = "cifar10-crown-ibp-cifar_model", "cifar10-smoothing-cifar_model"
STUDIES = {
    "certificates": Study(
        objectives={
            "ibp": (CERTIFIED, {"objective": {"name": "ibp", "epsilon": "2/255"}}),
            "crown-ibp": (CERTIFIED, {}),
            "sabr": ("cifar10-sabr-cifar_model", {}),
            "mtl-ibp": ("cifar10-mtl-ibp-cifar_model", {}),
            "mixtrain": (CERTIFIED, {"objective": MIXTRAIN}),
        },
        epochs={"ibp": 16, "crown-ibp": 7, "sabr": 9, "mtl-ibp": 8, "mixtrain": 4},
        seconds={"ibp": 294, "crown-ibp": 258, "sabr": 289, "mtl-ibp": 277, "mixtrain": 124},
        evaluations=(
            ("attack", {"attack": "pgd", "epsilon": "2/255"}),
            ("certify", {"method": "exact", "epsilon": "2/255", "max_subproblems": 1000}),
        ),
        images=500,
        columns={
            "clean": lambda records: records["pgd"]["prediction"] == records["pgd"]["label"],
            "PGD-50": lambda records: records["pgd"]["robust"],
            "verified": lambda records: records["exact"]["verdict"] == "verified",
            "not broken": lambda records: records["exact"]["verdict"] != "broken",
        },
        compared=("verified",),
        seeds=(0, 1),
    ),
    "smoothing": Study(
        objectives={
            "gaussian": (SMOOTHED, {}),
            "stability": ("cifar10-stability-cifar_model", {}),
            "consistency": ("cifar10-consistency-cifar_model", {}),
            "macer": ("cifar10-macer-cifar_model", {}),
            "smoothadv": ("cifar10-smoothadv-cifar_model", {}),
        },
        epochs={"gaussian": 20, "stability": 24, "consistency": 14, "macer": 7, "smoothadv": 5},
        seconds={"gaussian": 189, "stability": 185, "consistency": 180, "macer": 200, "smoothadv": 187},
        evaluations=(
            (
                "certify",
                {
                    "method": "smoothing",
                    "sigma": 0.25,
                    "samples": 10000,
                    "mode": "adaptive",
                    "radii": RADII,
                },
            ),
        ),
        images=300,
        columns={f"radius {radius:g}": _certified(radius) for radius in RADII},
        compared=tuple(f"radius {radius:g}" for radius in RADII),
        seeds=(0,),
    ),
}


def recipe(study: Study, objective: str, seed: int = 0) -> dict[str, Any]:
    """Return the recipe of an objective; the radius, where there is one, grows over the first half of the epochs."""
    (base, changes), epochs = study.objectives[objective], study.epochs[objective]
    train = {"epochs": epochs, "epsilon_ramp_epochs": max(1, epochs // 2)}
    return {"base": base, "name": objective, "seed": seed, **changes, "train": train}


def measure(study: Study, turns: int) -> None:
    """Print what the epochs of every objective cost in processor seconds, and one of them; the median of turns."""
    images = load_cifar10("train", Path(os.environ["HYDRABENCH_DATA"]))
    part = images.images[::PART], images.labels[::PART]
    seconds: dict[str, list[float]] = {objective: [] for objective in study.objectives}
    for _ in range(turns):
        for objective, found in seconds.items():
            with TemporaryDirectory() as folder:
                start = time.process_time()
                hb.train(recipe(study, objective), data=part, out=Path(folder) / "run", device="cpu")
                found.append(PART * (time.process_time() - start))
    for objective, found in seconds.items():
        each = median(found)
        print(f"{objective:12} {each:6.0f} s, {each / study.epochs[objective]:5.1f} s an epoch")


def train(study: Study, folder: Path) -> None:
    """Train and judge every objective with every seed, or continue."""
    for seed in study.seeds:
        for objective in study.objectives:
            place = folder / f"{objective}-seed{seed}"
            network = hb.train(recipe(study, objective, seed), out=place / "train", resume=True, device="cpu").path
            for command, given in study.evaluations:
                name = given.get("attack") or given["method"]
                getattr(hb, command)(network, n=study.images, out=place / name, resume=True, device="cpu", **given)


def records(study: Study, folder: Path, objective: str, seed: int) -> dict[str, pd.DataFrame]:
    """Return the records of every evaluation of a network, by its name."""
    names = [given.get("attack") or given["method"] for _, given in study.evaluations]
    return {name: hb.Run(folder / f"{objective}-seed{seed}" / name).records for name in names}


def tables(study: Study, folder: Path) -> tuple[str, str]:
    """Return the table of the objectives, and that of their comparisons with the first of them."""
    held = {
        (objective, seed): {name: column(found) for name, column in study.columns.items()}
        for objective in study.objectives
        for seed in study.seeds
        for found in [records(study, folder, objective, seed)]
    }
    rows = []
    for objective in study.objectives:
        each = [[100 * held[objective, seed][name].mean() for seed in study.seeds] for name in study.columns]
        cells = [" / ".join(f"{value:.1f}" for value in values) for values in each]
        rows.append((objective, str(study.epochs[objective]), f"{study.seconds[objective]:.0f}", *cells))
    return table(("objective", "epochs", "s", *study.columns), rows), _comparisons(study, held)


def _comparisons(study: Study, held: Mapping[tuple[str, int], Mapping[str, pd.Series]]) -> str:
    first, *others = study.objectives
    lines = list(product(study.compared, others, study.seeds))
    counts = [
        paired_counts(*(held[one, seed][column].to_numpy() for one in (objective, first)))
        for column, objective, seed in lines
    ]
    chances = [mcnemar_p(one.first, one.second) for one in counts]
    rows = []
    for line, one, p, corrected in zip(lines, counts, chances, holm(chances), strict=True):
        low, high = tango_interval(one.first, one.second, one.n)
        difference = f"{100 * one.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        rows.append((f"{line[0]}, {line[1]}", str(line[2]), difference, f"{p:.2g}", f"{corrected:.2g}"))
    return table((f"against {first}", "seed", "difference, 95 %", "p", "Holm"), rows)


def write(folder: Path) -> None:
    """Write reports/training-objectives.md."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    made = {name: tables(study, folder / name) for name, study in STUDIES.items()}
    text = environment.from_string(TEXT.read_text(encoding="utf-8")).render(tables=made)
    write_text(REPORTS / "training-objectives.md", text)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("time", "train", "write"))
    parser.add_argument("study", nargs="?", choices=tuple(STUDIES), help="of time and train")
    parser.add_argument("--runs", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--turns", type=int, default=3, help="of time (default: 3)")
    given = parser.parse_args()
    if given.action == "write":
        return write(given.runs)
    if given.study is None:
        parser.error(f"{given.action} needs a study: {', '.join(STUDIES)}")
    study = STUDIES[given.study]
    return measure(study, given.turns) if given.action == "time" else train(study, given.runs / given.study)


if __name__ == "__main__":
    main()
