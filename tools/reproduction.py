"""The tables of reports/hydra-reproduction.md: networks of the zoo, and digits networks of more seeds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from scipy.stats import t

import hydrabench as hb
from hydrabench.checkpoints import read_manifest
from hydrabench.checkpoints.manifest import ZooEntry
from hydrabench.files import shipped, write_text
from hydrabench.masking import prunable_layers
from hydrabench.recipes import load_recipe
from hydrabench.reporting import Leaderboard, build_leaderboard
from hydrabench.reporting.legend import headings, size_text
from hydrabench.reporting.paired import twins
from hydrabench.reporting.rows import Row
from hydrabench.reporting.significance import PairedCounts, holm, mcnemar_p, paired_counts, tango_interval
from hydrabench.workflows.pipeline import run_pipeline
from hydrabench.workflows.reporting import find_runs
from hydrabench.workflows.run_options import RunOptions

TEXT = Path(__file__).parent / "hydra-reproduction.md.j2"
SEEDS = range(5)
SEEDED = ("digits-crown-ibp", "digits-trades")  # recipes that take a minute or two
# By recipe: the ledger in which twins are compared, the field that says what an image holds, and the column's name.
COLUMNS = {
    "digits-crown-ibp": ("crown-ibp", "verified", "CROWN-IBP L∞ 16/255"),
    "digits-trades": ("crown-ibp", "verified", "CROWN-IBP L∞ 16/255"),
    "cifar10-crown-ibp-cifar_model": ("cascade", "verified", "cascade L∞ 2/255"),
    "cifar10-trades-cifar_model": ("pgd", "robust", "PGD-50 L∞ 8/255"),
}
METHODS = {"train": "dense", "finetune": "HYDRA", "lwm": "LWM"}


def write_up(boards: Mapping[str, Leaderboard], runs: Path, folder: Path) -> None:
    """Write hydra-reproduction.md in `folder`, with its tables made from the boards of the three reports.

    Args:
        runs: where the digits networks of more seeds are trained, resumed.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = environment.from_string(TEXT.read_text(encoding="utf-8")).render(
        comparisons=comparisons(),
        seeds=seeds(seeded(runs / "seeds")),
        networks={name: networks(board) for name, board in boards.items()},
        kept=kept(),
    )
    write_text(folder / "hydra-reproduction.md", text)


@dataclass(frozen=True)
class Pair:
    """A shipped network pruned by HYDRA, its twin pruned by magnitude, and what each image holds under both."""

    name: str
    recipe: str
    density: float
    seed: int
    column: str
    counts: PairedCounts
    shares: tuple[float, float]


def pairs() -> list[Pair]:
    """Return every pair of twins of the zoo, compared in the ledgers that ship with them."""
    entries, found = read_manifest(), []
    for name, entry in entries.items():
        stem, _, pruned = name.rpartition("-")
        twin = entries.get(f"{stem}-lwm-{pruned}")
        if entry.density < 1 and twin is not None:
            kind, field, column = COLUMNS[str(entry.recipe)]
            verdicts = [_verdicts(one, kind, field) for one in (entry, twin)]
            shares = (sum(verdicts[0]) / len(verdicts[0]), sum(verdicts[1]) / len(verdicts[1]))
            seed = int(stem.rpartition("-seed")[2]) if "-seed" in stem else 0
            counts = paired_counts(*map(np.array, verdicts))
            found.append(Pair(name, str(entry.recipe), entry.density, seed, column, counts, shares))
    return found


def _verdicts(entry: ZooEntry, kind: str, field: str) -> list[bool]:
    (result,) = [one for one in entry.results if one.settings["kind"] == kind]
    with gzip.open(shipped("zoo") / result.ledger, "rt", encoding="utf-8") as file:
        return [bool(json.loads(line)[field]) for line in file]


def comparisons() -> str:
    """Return HYDRA against LWM on the same images, all pairs of the zoo as one family for Holm's correction."""
    found = pairs()
    chances = [mcnemar_p(one.counts.first, one.counts.second) for one in found]
    rows = []
    for one, p, corrected in zip(found, chances, holm(chances), strict=True):
        counts = one.counts
        low, high = tango_interval(counts.first, counts.second, counts.n)
        rows.append(
            (
                one.name,
                one.column,
                str(counts.n),
                *(f"{100 * share:.1f}" for share in one.shares),
                f"{100 * counts.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                f"{counts.first} / {counts.second}",
                f"{p:.2g}",
                f"{corrected:.2g}",
            )
        )
    heads = "network", "column", "images", "HYDRA %", "LWM %", "difference, 95 %", "only HYDRA / only LWM", "p", "Holm"
    return table(heads, rows)


def seeded(runs: Path) -> Leaderboard:
    """Train, prune and judge digits networks of several seeds, or continue; return their leaderboard."""
    for recipe in SEEDED:
        for seed in SEEDS:
            changed = [f"seed={seed}", "evaluate=[{kind: pgd}, {kind: crown-ibp}]"]
            options = RunOptions(device="cpu")
            run_pipeline(load_recipe(recipe, changed), runs / f"{recipe}-{seed}", options=options, resume=True)
    return build_leaderboard(find_runs([runs]), sort="CROWN-IBP")


def seeds(board: Leaderboard) -> str:
    """Return the difference of HYDRA and LWM for every recipe and density over seeds, with Student's 95 % interval.

    Args: board: of digits networks of several seeds; those of CIFAR-10 are in the zoo.
    """
    differences: dict[tuple[str, float, str], dict[int, float]] = {}
    about = {row.label: row.checkpoint for row in board.rows}
    for line in twins(board).itertuples():
        network = about[line.first]
        key = str(network.recipe), float(network.density or 1), COLUMNS[str(network.recipe)][2]
        differences.setdefault(key, {})[int(network.seed or 0)] = 100 * line.difference
    for one in pairs():
        if one.recipe not in SEEDED:
            key = one.recipe, one.density, one.column
            differences.setdefault(key, {})[one.seed] = 100 * one.counts.difference
    rows = []
    for (recipe, density, column), found in sorted(differences.items(), key=lambda pair: (pair[0][0], -pair[0][1])):
        values = pd.Series([found[seed] for seed in sorted(found)])
        half = t.ppf(0.975, len(values) - 1) * values.sem()
        span = f"{values.mean():+.1f} [{values.mean() - half:+.1f}, {values.mean() + half:+.1f}]"
        each = ", ".join(f"{value:+.1f}" for value in values)
        rows.append((recipe, f"{density:g}", column, each, span))
    return table(("recipe", "density", "column", "HYDRA − LWM of each seed", "mean, 95 % over seeds"), rows)


def networks(board: Leaderboard) -> str:
    """Return the numbers of every network of a report, densest first; bytes are those of the compact file."""
    columns = [column for column in board.columns if column.metric != "average_certified_radius"]
    names = headings(board)
    rows = []
    for row in sorted(board.rows, key=lambda row: (-(row.checkpoint.density or 0), _method(row))):
        numbers = [row.cells.get(column) for column in columns]
        cells = ["–" if one is None else f"{100 * one.value:.1f}" for one in numbers]
        density, size = row.checkpoint.density, size_text(row.checkpoint.size)
        rows.append((_method(row), f"{density:g}", f"{row.checkpoint.nonzero_parameters:,}", size, *cells))
    return table(("", "density", "nonzero", "bytes", *(names[column] for column in columns)), rows)


def kept() -> str:
    """Return how much of what HYDRA keeps magnitude pruning would have kept, too, network by network."""
    entries = read_manifest()
    rows = []
    for name, entry in entries.items():
        stem, _, pruned = name.rpartition("-")
        twin = f"{stem}-lwm-{pruned}"
        if entry.density < 1 and twin in entries and "lwm" not in stem:
            masks = [
                {key: layer.weight != 0 for key, layer in prunable_layers(hb.load(one)).items()} for one in (name, twin)
            ]
            both = sum(int((mask & masks[1][key]).sum()) for key, mask in masks[0].items())
            every = sum(int(mask.sum()) for mask in masks[0].values())
            rows.append((name, f"{every:,}", f"{100 * both / every:.0f}"))
    return table(("network", "weights kept by HYDRA", "of them kept by LWM, too, %"), rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column holds words, and the others numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _method(row: Row) -> str:
    return METHODS[row.checkpoint.phase or "train"]
