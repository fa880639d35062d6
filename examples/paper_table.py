"""A table for a paper: every network under every evaluation, with intervals, as LaTeX rows and as a report.

    python examples/paper_table.py FOLDER [IMAGES]      # FOLDER keeps the runs; default 100 test images

Started again, it goes on with what FOLDER holds, also with more images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

import hydrabench as hb

NETWORKS = {"digits-trades": "dense", "digits-trades-95": "95 % pruned", "digits-trades-99": "99 % pruned"}
EPSILON = "8/255"
COLUMNS = ("clean", f"PGD-20 L∞ {EPSILON}", f"CROWN-IBP L∞ {EPSILON}")


def percent(table: pd.DataFrame, network: str, column: str) -> str:
    """One cell: the value and its 95 % interval, in percent."""
    value, low, high = (100 * table.loc[network, column + end] for end in ("", " low", " high"))
    return f"{value:.1f} \\tiny[{low:.1f}, {high:.1f}]"


def main(folder: Path, n: int) -> None:
    """Make the runs, the report in FOLDER/report, and print the rows."""
    runs = []
    for network in NETWORKS:
        common = {"epsilon": EPSILON, "n": n, "resume": True}
        runs.append(hb.attack(network, steps=20, out=folder / network / "pgd", **common))
        runs.append(hb.certify(network, out=folder / network / "crown-ibp", **common))
    table = hb.report(runs, folder / "report").table
    for network, label in NETWORKS.items():
        print(
            " & ".join([label.replace("%", "\\%"), *(percent(table, network, column) for column in COLUMNS)]) + r" \\"
        )
    dense, pruned = runs[0].records["robust"], runs[2].records["robust"]  # indexed by image, so they can be compared
    lost, won = int((dense & ~pruned).sum()), int((~dense & pruned).sum())
    print(f"% pruned to 5 %: of {len(dense)} images, {lost} are no longer robust and {won} have become so")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100)
