"""Sub-networks of an ordinarily trained network: half of its weights, chosen under each objective, and never trained.

    python tools/subnetworks.py       # trains, prunes, judges, or continues, then writes reports/subnetworks

HYDRA's README does this with wrn_28_4 in 120 epochs (recipes subnetwork-*); here it is cifar_model, in minutes. Needs
CIFAR-10 in HYDRABENCH_DATA. On a CPU with one thread; `--runs` says where the runs lie (default runs/subnetworks).
"""

from __future__ import annotations

import one_thread  # noqa: F401  # first: before torch is imported

# isort: split

import argparse
from pathlib import Path
from typing import Any

import hydrabench as hb
from hydrabench.workflows.reporting import REPORT_FORMATS, write_report

REPORT = Path(__file__).resolve().parents[1] / "reports/subnetworks"
PHASE = {"optimizer": "adam", "lr": 1e-3, "schedule": "cosine"}
TRAINED = {"base": "subnetwork-trades", "model": {"arch": "cifar_model"}, "train": {**PHASE, "epochs": 15}}
PRUNED: dict[str, Any] = {"model": {"arch": "cifar_model"}, "prune": {**PHASE, "epochs": 4, "batch_size": 128}}
GROWING = {"prune": {**PRUNED["prune"], "epsilon_ramp_epochs": 2, "epsilon_schedule": "linear"}}
CHOOSERS: dict[str, dict[str, Any]] = {  # what changes in PRUNED
    "natural": {"base": "subnetwork-trades", "objective": {"name": "natural"}, "evaluate": []},
    "trades": {"base": "subnetwork-trades"},
    "crown-ibp": {"base": "subnetwork-crown-ibp", **GROWING},
    "mixtrain": {"base": "subnetwork-mixtrain", **GROWING},
    "stability": {"base": "subnetwork-stability"},
}
DENSITY, IMAGES, SIGMA = 0.5, 1000, 0.25


def main(runs: Path) -> None:
    """Train one network, choose half of its weights under every objective, judge all, and write the report."""
    dense = hb.train(TRAINED, out=runs / "dense", resume=True, device="cpu").path
    judge(dense)
    for name, changes in CHOOSERS.items():
        recipe = {**PRUNED, "name": name, **changes}
        judge(hb.prune(recipe, dense, density=DENSITY, out=runs / name, resume=True, device="cpu").path)
    write_report([runs], REPORT, REPORT_FORMATS, sort="PGD-50 L∞ 2/255")


def judge(network: Path) -> None:
    """Attack and certify a network, or continue; the runs lie in its own folder."""
    for radius in (2, 8):
        place = network / f"pgd-{radius}"
        hb.attack(network, epsilon=f"{radius}/255", n=IMAGES, out=place, resume=True, device="cpu")
    hb.certify(network, epsilon="2/255", n=IMAGES, out=network / "crown-ibp", resume=True, device="cpu")
    smoothing = {"method": "smoothing", "sigma": SIGMA, "samples": 10000, "mode": "adaptive", "radii": (0, 0.25, 0.5)}
    hb.certify(network, n=IMAGES // 4, out=network / "smoothing", resume=True, device="cpu", **smoothing)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/subnetworks"))
    main(parser.parse_args().runs)
