"""The tables of reports/hydra-reproduction.md: networks of the zoo, and digits networks of more seeds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from scipy.stats import t

import hydrabench as hb
from hydrabench.checkpoints import read_manifest
from hydrabench.evaluators import EVALUATORS
from hydrabench.files import shipped, write_text
from hydrabench.masking import prunable_layers
from hydrabench.recipes import load_recipe
from hydrabench.reporting import build_leaderboard
from hydrabench.reporting.legend import size_text
from hydrabench.reporting.paired import twins
from hydrabench.reporting.significance import PairedCounts, holm, mcnemar_p, paired_counts, tango_interval
from hydrabench.workflows.pipeline import run_pipeline
from hydrabench.workflows.reporting import find_runs
from hydrabench.workflows.run_options import RunOptions

TEXT = Path(__file__).parent / "hydra-reproduction.md.j2"
SEEDED = ("digits-crown-ibp", "digits-trades")  # recipes that take a minute or two
SEEDS = range(5)
DIFFERENCES = "digits-seeds.csv"  # of those, HYDRA - LWM in points
# By recipe: the ledger in which twins are compared, the metric that says what an image holds, and the column's name.
VERIFIED = ("crown-ibp", "verified_accuracy", "CROWN-IBP L∞ 16/255")
ATTACKED = ("pgd", "robust_accuracy", "PGD-50 L∞ 8/255")
COLUMNS = {
    "digits-crown-ibp": VERIFIED,
    "digits-trades": VERIFIED,
    "cifar10-crown-ibp-cifar_model": ("cascade", "verified_accuracy", "cascade L∞ 2/255"),
    "cifar10-trades-cifar_model": ATTACKED,
    "cifar10-trades-wrn_10_1": ATTACKED,
    "cifar10-stability-wrn_10_1": ("smoothing", "certified_accuracy@0.25", "smoothing σ 0.25, L2 0.25"),
}
METHODS = {"train": "dense", "finetune": "HYDRA", "lwm": "LWM"}
UNSHOWN = ("average_certified_radius",)


def write_up(folder: Path) -> str:
    """Return the text of hydra-reproduction.md, from the reports and differences in `folder` and from the zoo."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    reports = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/summary.json"))}
    return environment.from_string(TEXT.read_text(encoding="utf-8")).render(
        comparisons=comparisons(),
        seeds=seeds(pd.read_csv(folder / DIFFERENCES)),
        networks={name: networks(report) for name, report in reports.items()},
        kept=kept(),
        deployment=deployment(pd.read_csv(folder / "deployment.csv", dtype=str)),
    )


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
            kind, metric, column = COLUMNS[str(entry.recipe)]
            held = [verdicts(identity, kind, metric) for identity in (name, twin.id)]
            shares = (sum(held[0]) / len(held[0]), sum(held[1]) / len(held[1]))
            seed = int(stem.rpartition("-seed")[2]) if "-seed" in stem else 0
            counts = paired_counts(*(np.array(each, dtype=bool) for each in held))
            found.append(Pair(name, str(entry.recipe), entry.density, seed, column, counts, shares))
    return found


def verdicts(identity: str, kind: str, metric: str) -> tuple[float, ...]:
    """Return what a metric says of each image, by the ledger that ships with a network of the zoo."""
    entry = read_manifest()[identity]
    (result,) = [one for one in entry.results if one.settings["kind"] == kind]
    with gzip.open(shipped("zoo") / result.ledger, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    evaluator = EVALUATORS[kind]
    return evaluator.metrics(lines, evaluator.read(result.settings))[metric].values


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


def train_seeds(runs: Path, folder: Path) -> None:
    """Train, prune and judge digits networks of several seeds, or continue; write how HYDRA and LWM differ."""
    for recipe in SEEDED:
        for seed in SEEDS:
            changed = [f"seed={seed}", "evaluate=[{kind: pgd}, {kind: crown-ibp}]"]
            options = RunOptions(device="cpu")
            run_pipeline(load_recipe(recipe, changed), runs / f"{recipe}-{seed}", options=options, resume=True)
    board = build_leaderboard(find_runs([runs]), sort="CROWN-IBP")
    about = {row.label: row.checkpoint for row in board.rows}
    found = []
    for line in twins(board).itertuples():
        network = about[line.first]
        found.append((network.recipe, network.density, network.seed, round(100 * line.difference, 6)))
    frame = pd.DataFrame(sorted(found), columns=["recipe", "density", "seed", "points"])
    write_text(folder / DIFFERENCES, frame.to_csv(index=False))


def seeds(digits: pd.DataFrame) -> str:
    """Return the difference of HYDRA and LWM for every recipe and density over seeds, with Student's 95 % interval.

    Args: digits: recipe, density, seed and difference in points; those of CIFAR-10 are in the zoo.
    """
    found = [(one.recipe, one.density, one.seed, 100 * one.counts.difference) for one in pairs()]
    others = pd.DataFrame([one for one in found if one[0] not in SEEDED], columns=digits.columns)
    together = pd.concat([digits, others]).sort_values(["recipe", "density", "seed"], ascending=[True, False, True])
    rows = []
    for (recipe, density), part in together.groupby(["recipe", "density"], sort=False):
        values = part["points"]
        each = ", ".join(f"{value:+.1f}" for value in values)
        if len(values) > 1:
            rows.append((recipe, f"{density:g}", COLUMNS[recipe][2], each, spread(values)))
    return table(("recipe", "density", "column", "HYDRA − LWM of each seed", "mean, 95 % over seeds"), rows)


def spread(values: pd.Series) -> str:
    """Return a mean with Student's 95 % interval."""
    half, mean = t.ppf(0.975, len(values) - 1) * values.sem(), values.mean()
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def networks(report: Mapping[str, Any]) -> str:
    """Return the numbers of every network of a report, densest first; bytes are those of the compact file."""
    columns = [column for column in report["columns"] if column["metric"] not in UNSHOWN]
    values = {(one["sha256"], one["column"]): f"{100 * one['value']:.1f}" for one in report["numbers"]}
    rows = []
    for one in sorted(report["networks"], key=lambda one: (-one["density"], _method(one))):
        cells = [values.get((one["sha256"], column["column"]), "–") for column in columns]
        size = size_text(one["compact_bytes"] or one["bytes"])
        rows.append((_method(one), f"{one['density']:g}", f"{one['nonzero_parameters']:,}", size, *cells))
    return table(("", "density", "nonzero", "bytes", *(column["heading"] for column in columns)), rows)


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


def deployment(found: pd.DataFrame) -> str:
    """Return what arrives on a device of the first seed's networks, from what benchmarks/deployment.py wrote."""
    first = found[~found["network"].str.contains("-seed")].drop(columns="differ by")
    first = first.loc[:, (first != "–").any()]
    return table(tuple(first), first.itertuples(index=False))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column holds words, and the others numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _method(network: Mapping[str, Any]) -> str:
    """How a network came to be; one whose weights were chosen and not trained is known by what chose them."""
    return METHODS.get(network["phase"] or "train", network["objective"])
