"""The tables of reports/hydra-reproduction.md: networks of the zoo, and digits networks of more seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd
from scipy.stats import t

import hydrabench as hb
from hydrabench.checkpoints import read_manifest
from hydrabench.files import write_text
from hydrabench.masking import prunable_layers
from hydrabench.recipes import load_recipe
from hydrabench.reporting import Leaderboard, build_leaderboard
from hydrabench.reporting.legend import headings, size_text
from hydrabench.reporting.paired import twins
from hydrabench.reporting.rows import Row
from hydrabench.reporting.significance import holm
from hydrabench.workflows.pipeline import run_pipeline
from hydrabench.workflows.reporting import find_runs
from hydrabench.workflows.run_options import RunOptions

TEXT = Path(__file__).parent / "hydra-reproduction.md.j2"
SEEDS = range(5)
SEEDED = ("digits-crown-ibp", "digits-trades")  # recipes that take a minute or two
METHODS = {"train": "dense", "finetune": "HYDRA", "lwm": "LWM"}


def write_up(boards: Mapping[str, Leaderboard], runs: Path, folder: Path) -> None:
    """Write hydra-reproduction.md in `folder`, with its tables made from the boards of the three reports.

    Args:
        runs: where the digits networks of more seeds are trained, resumed.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = environment.from_string(TEXT.read_text(encoding="utf-8")).render(
        comparisons=comparisons(boards.values()),
        seeds=seeds([seeded(runs / "seeds"), *(board for name, board in boards.items() if name.startswith("cifar10"))]),
        networks={name: networks(board) for name, board in boards.items()},
        kept=kept(),
    )
    write_text(folder / "hydra-reproduction.md", text)


def comparisons(boards: Iterable[Leaderboard]) -> str:
    """Return HYDRA against LWM on the same images, all reports together as one family for Holm's correction."""
    found = pd.concat([twins(board) for board in boards], ignore_index=True)
    found = found.assign(p_holm=holm(found["p"].tolist()))
    rows = [
        (
            one.first,
            one.column.replace(f" (n={one.n})", ""),
            str(one.n),
            f"{100 * one.first_value:.1f}",
            f"{100 * one.second_value:.1f}",
            f"{100 * one.difference:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]",
            f"{one.first_only} / {one.second_only}",
            f"{one.p:.2g}",
            f"{one.p_holm:.2g}",
        )
        for one in found.itertuples()
    ]
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


def seeds(boards: Iterable[Leaderboard]) -> str:
    """Return the difference of HYDRA and LWM for every recipe and density over seeds, with Student's 95 % interval."""
    differences: dict[tuple[str, float, str], dict[int, float]] = {}
    for board in boards:
        about = {row.label: row.checkpoint for row in board.rows}
        for one in twins(board).itertuples():
            network = about[one.first]
            key = str(network.recipe), float(network.density or 1), one.column.replace(f" (n={one.n})", "")
            differences.setdefault(key, {})[int(network.seed or 0)] = 100 * one.difference
    rows = []
    for (recipe, density, column), found in sorted(differences.items(), key=lambda pair: (pair[0][0], -pair[0][1])):
        values = pd.Series([found[seed] for seed in sorted(found)])
        half = t.ppf(0.975, len(values) - 1) * values.sem() if len(values) > 1 else float("nan")
        span = f"{values.mean():+.1f} [{values.mean() - half:+.1f}, {values.mean() + half:+.1f}]"
        each = ", ".join(f"{value:+.1f}" for value in values)
        rows.append((recipe, f"{density:g}", column, each, span))
    return table(("recipe", "density", "column", "HYDRA − LWM of each seed", "mean, 95 % over seeds"), rows)


def networks(board: Leaderboard) -> str:
    """Return the numbers of every network of a report, densest first; bytes are those of the compact file."""
    columns = [column for column in board.columns if column.metric != "average_certified_radius"]
    names = headings(board)
    rows = []
    for row in sorted(board.rows, key=_order):
        numbers = [row.cells.get(column) for column in columns]
        cells = ["–" if one is None else f"{100 * one.value:.1f}" for one in numbers]
        density, size = row.checkpoint.density, size_text(row.checkpoint.size)
        about = _method(row), f"{row.checkpoint.seed}", f"{density:g}", f"{row.checkpoint.nonzero_parameters:,}", size
        rows.append((*about, *cells))
    return table(("", "seed", "density", "nonzero", "bytes", *(names[column] for column in columns)), rows)


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


def _order(row: Row) -> tuple[float, str, int]:
    return -(row.checkpoint.density or 0), _method(row), row.checkpoint.seed or 0


def _method(row: Row) -> str:
    return METHODS[row.checkpoint.phase or "train"]
