"""How a pruning budget is shared among layers: reports/pruning-budgets.md.

    python tools/budgets.py digits         # layer, global and learned budgets (HARP) at 99 and 99.5 %, five seeds
    python tools/budgets.py cifar10        # at 99 % under CROWN-IBP, from the zoo's dense networks; HYDRABENCH_DATA
    python tools/budgets.py write          # the report, from the tables that these two left in reports/

Everything resumes; `--runs` says where the runs lie (default runs/budgets). On a CPU with one thread.
"""

from __future__ import annotations

import one_thread  # noqa: F401  # first: before torch is imported

# isort: split

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from reproduction import spread, table, verdicts

import hydrabench as hb
from hydrabench.files import write_text
from hydrabench.reporting.significance import mcnemar_p, paired_counts, tango_interval

TEXT = Path(__file__).parent / "pruning-budgets.md.j2"
REPORTS = Path(__file__).resolve().parents[1] / "reports"

SCOPES = ("layer", "global", "learned")  # the first is HYDRA's, with which the others are compared
DENSITIES = (0.01, 0.005)
SEEDS = range(5)
RECIPES = ("digits-crown-ibp", "digits-trades")
# Adam's steps need a learning rate for keep rates; chosen among four pairs on seed 0 at 99 %. TRADES has HARP's SGD.
LEARNED = {"digits-crown-ibp": {"rate_lr": 0.02, "budget_weight": 0.1}, "digits-trades": {}}
RADIUS = "16/255"
CLEAN, ATTACKED, VERIFIED = "clean", "PGD-50", "CROWN-IBP"
SLOW = 1e-4  # a tenth of the recipe's learning rate, for scores
# On CIFAR-10 the zoo has HYDRA's scope.
IMAGES, ZOO = "cifar10-crown-ibp-cifar_model", ("cifar10-crown-ibp", "cifar10-crown-ibp-seed1")


def train_digits(folder: Path) -> None:
    """Train, prune under every scope, fine-tune and judge digits networks of every seed, or continue."""
    for name, seed in product(RECIPES, SEEDS):
        place = folder / f"{name}-seed{seed}"
        dense = hb.train({"base": name, "seed": seed}, out=place / "dense", resume=True, device="cpu").path
        for scope, density in product(SCOPES, DENSITIES):
            pruned = place / f"{scope}-{density:g}"
            tuned = prune(name, seed, scope, density, dense, pruned)
            hb.attack(tuned, epsilon=RADIUS, out=pruned / "pgd", resume=True, device="cpu")
            hb.certify(tuned, epsilon=RADIUS, out=pruned / "crown-ibp", resume=True, device="cpu")


def prune(name: str, seed: int, scope: str, density: float, dense: Path | str, place: Path, **more: Any) -> Path:
    """Prune a dense network under one scope and fine-tune it, or continue; return the run's folder."""
    section = {"scope": scope, **(LEARNED[name] if scope == "learned" else {}), **more}
    recipe = {"base": name, "seed": seed, "prune": section}
    chosen = hb.prune(recipe, dense, density=density, out=place / "prune", resume=True, device="cpu").path
    return hb.finetune(recipe, chosen, out=place / "finetune", resume=True, device="cpu").path


def train_images(folder: Path) -> None:
    """Prune the dense CIFAR-10 networks of both seeds by HYDRA and by magnitude under one budget, and judge them."""
    for seed, dense in enumerate(ZOO):
        hydra, slow, lwm = (folder / f"{dense}-{how}" for how in ("global", "global-slow", "global-lwm"))
        recipe = {"base": IMAGES, "seed": seed, "finetune": {"scope": "global"}}
        prune(IMAGES, seed, "global", DENSITIES[0], dense, hydra)
        prune(IMAGES, seed, "global", DENSITIES[0], dense, slow, lr=SLOW)
        kept = {"density": DENSITIES[0], "lwm": True, "resume": True, "device": "cpu"}
        hb.finetune(recipe, dense, out=lwm / "finetune", **kept)
        for place in (hydra, slow, lwm):
            tuned, given = place / "finetune", {"epsilon": "2/255", "n": 1000, "resume": True, "device": "cpu"}
            hb.attack(tuned, out=place / "pgd", **given)
            hb.certify(tuned, method="cascade", out=place / "cascade", **given)


def images_table(folder: Path) -> pd.DataFrame:
    """Return what HYDRA and magnitude verify under HYDRA's scope, which the zoo has, and under one budget."""
    rows: list[tuple[str, ...]] = []
    for dense in ZOO:
        shipped = {"HYDRA": f"{dense}-99", "LWM": f"{dense}-lwm-99"}
        layer = {how: np.array(verdicts(name, "cascade", "verified_accuracy")) for how, name in shipped.items()}
        lwm = _verified(folder / f"{dense}-global-lwm")
        found = {
            "layer": layer,
            "global": {"HYDRA": _verified(folder / f"{dense}-global"), "LWM": lwm},
            f"global, HYDRA at lr {SLOW:g}": {"HYDRA": _verified(folder / f"{dense}-global-slow"), "LWM": lwm},
        }
        for scope, held in found.items():
            shares = [f"{100 * held[how].mean():.1f}" for how in held]
            gain = ("", "") if scope == "layer" else against(held["HYDRA"], layer["HYDRA"])
            rows.append((f"{dense}, {scope}", *shares, *against(held["HYDRA"], held["LWM"]), *gain))
    heads = ("network, scope", "HYDRA", "LWM", "HYDRA − LWM, 95 %", "p", "HYDRA − HYDRA with layer, 95 %", "p of it")
    return pd.DataFrame(rows, columns=heads)


def _verified(place: Path) -> np.ndarray[Any, Any]:
    return hb.Run(place / "cascade").records["verified"].to_numpy(float)


def against(held: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> tuple[str, str]:
    """Return the paired difference in points with Tango's 95 % interval, and McNemar's exact p."""
    counts = paired_counts(held.astype(bool), others.astype(bool))
    low, high = tango_interval(counts.first, counts.second, counts.n)
    span = f"{100 * counts.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return span, f"{mcnemar_p(counts.first, counts.second):.2g}"


def digits_table(folder: Path) -> pd.DataFrame:
    """Return means over seeds, and the difference with HYDRA's scope with Student's 95 % interval over seeds."""
    rows: list[tuple[str, ...]] = []
    for name, density in product(RECIPES, DENSITIES):
        held = {
            scope: _percentages([folder / f"{name}-seed{n}" / f"{scope}-{density:g}" for n in SEEDS])
            for scope in SCOPES
        }
        for scope, found in held.items():
            differences = found[VERIFIED] - held[SCOPES[0]][VERIFIED]
            against = "" if scope == SCOPES[0] else spread(differences)
            means = [f"{found[column].mean():.1f}" for column in (CLEAN, ATTACKED, VERIFIED)]
            rows.append((f"{name}, {scope}", f"{100 * (1 - density):g} %", *means, against))
    heads = ("recipe, scope", "pruned", CLEAN, ATTACKED, VERIFIED, f"{VERIFIED} − {SCOPES[0]}, 95 % over seeds")
    return pd.DataFrame(rows, columns=heads)


def _percentages(places: Sequence[Path]) -> pd.DataFrame:
    rows = []
    for place in places:
        attacked, bounded = hb.Run(place / "pgd").records, hb.Run(place / "crown-ibp").records
        right = attacked["prediction"] == attacked["label"]
        shares = {CLEAN: right.mean(), ATTACKED: attacked["robust"].mean(), VERIFIED: bounded["verified"].mean()}
        rows.append({name: 100 * share for name, share in shares.items()})
    return pd.DataFrame(rows)


def write() -> None:
    """Write reports/pruning-budgets.md."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    found = {name: pd.read_csv(REPORTS / f"budgets-{name}.csv", dtype=str, keep_default_na=False) for name in MADE}
    shown = {name: table(tuple(frame), frame.itertuples(index=False)) for name, frame in found.items()}
    write_text(REPORTS / "pruning-budgets.md", environment.from_string(TEXT.read_text(encoding="utf-8")).render(shown))


MADE = {"digits": (train_digits, digits_table), "cifar10": (train_images, images_table)}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=(*MADE, "write"))
    parser.add_argument("--runs", type=Path, default=Path("runs/budgets"))
    given = parser.parse_args()
    if given.action == "write":
        return write()
    train, tabulate = MADE[given.action]
    train(given.runs / given.action)
    write_text(REPORTS / f"budgets-{given.action}.csv", tabulate(given.runs / given.action).to_csv(index=False))
    return None


if __name__ == "__main__":
    main()
