"""The figures of a report: each is a table of numbers, and how it is drawn; see `drawing`.

A figure is made only where the leaderboard has the numbers for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hydrabench.reporting import drawing
from hydrabench.reporting.cells import Cell
from hydrabench.reporting.columns import PUBLISHED, Column, titles
from hydrabench.reporting.frames import numbers
from hydrabench.reporting.leaderboard import Leaderboard
from hydrabench.reporting.rows import Row
from hydrabench.reporting.statistics import clopper_pearson
from hydrabench.reporting.weights import Material, example_lengths, kept_weights, layer_densities, training_curves
from hydrabench.threat import NORM_TEXTS

if TYPE_CHECKING:
    import pandas as pd

GRID = 60  # radii of a curve of certified accuracy
RADIUS_BINS = 20  # intervals of a distribution of radii
MOST = 12  # networks that are drawn in one figure; its data have all
METHODS = {"train": "dense", "finetune": "HYDRA", "lwm": "LWM"}


@dataclass(frozen=True, eq=False)
class Figure:
    """name: of its files. caption: what is seen, for those who do not see it, too. draw: on the axes of matplotlib."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    draw: Callable[[Any, pd.DataFrame], None]

    @cached_property
    def pictures(self) -> dict[str, bytes]:
        """The figure in each format."""
        return drawing.rendered(self.draw, self.data, ("svg", "png", "pdf"))

    def files(self) -> dict[str, bytes]:
        """Return the figure as PNG and PDF, and its numbers as CSV, by file name."""
        table = self.data.to_csv(index=False, lineterminator="\n").encode()
        contents = {"csv": table, **self.pictures}
        return {name: contents[name.rpartition(".")[2]] for name in figure_files(self.name)}

    def svg(self) -> str:
        """Return the figure as SVG."""
        return self.pictures["svg"].decode()


def figure_files(name: str) -> list[str]:
    """Return the names of the files of a figure."""
    return [f"{name}.{end}" for end in ("csv", "png", "pdf")]


def figures(board: Leaderboard, material: Material) -> list[Figure]:
    """Return the figures for which there are numbers."""
    found = (make(board, material) for make in FIGURES.values())
    return [figure for figure in found if figure is not None and len(figure.data)]


def _certified(board: Leaderboard, _material: Material) -> Figure | None:
    import pandas as pd

    parts, known = [], set()
    for row, column in _cells(board, lambda column: column.metric == "average_certified_radius"):
        cell = board.cells[row.checkpoint.sha256, column]
        parts.append(_curve(cell.values).assign(network=row.label, sigma=column.sigma, protocol=column.protocol))
        known.add((row.label, column.sigma, column.protocol))
    # Where draws stop before the radius is known, only the radii that were asked for.
    for row, column in _cells(board, lambda column: column.radius is not None):
        about = (row.label, column.sigma, column.protocol)
        if about not in known:
            values = board.cells[row.checkpoint.sha256, column].values
            at = clopper_pearson(int(values.sum()), len(values))
            point = {"radius": column.radius, "value": at.value, "low": at.low, "high": at.high}
            parts.append(pd.DataFrame([dict(zip(("network", "sigma", "protocol"), about, strict=True), **point)]))
    if not parts:
        return None
    data = pd.concat(parts, ignore_index=True)
    several = data.groupby(["network", "protocol"])["sigma"].nunique()
    for network, protocol in several[several > 1].index:
        part = data[(data["network"] == network) & (data["protocol"] == protocol)]
        data = pd.concat([data, _envelope(part)], ignore_index=True)
    text = (
        "Fraction of images that are right and certified at each radius (pixel units; L1 for uniform and Laplace "
        "noise, else L2), with Clopper–Pearson 95 % bands at each radius. Where draws stop early, a curve joins the "
        "radii that were asked for, or is what had been certified until then. An envelope "
        "takes the best σ at each radius for all images together, and is no certificate of one classifier."
    )
    return Figure("certified", "Certified accuracy and radius", text, data, drawing.certified)


def _curve(radii: np.ndarray[Any, Any]) -> pd.DataFrame:
    """Return the certified accuracy of one network at radii up to its largest."""
    import pandas as pd

    earned = np.sort(radii[radii > 0])
    grid = np.unique(np.append(np.linspace(0, float(earned[-1]) if len(earned) else 1.0, GRID), 0.0))
    counts = len(earned) - np.searchsorted(earned, grid)
    at = {count: clopper_pearson(int(count), len(radii)) for count in set(counts.tolist())}
    rows = [
        (radius, at[count].value, at[count].low, at[count].high) for radius, count in zip(grid, counts, strict=True)
    ]
    return pd.DataFrame(rows, columns=["radius", "value", "low", "high"])


def _envelope(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the largest certified accuracy over the noise levels at each radius."""
    grid = np.sort(curves["radius"].unique())
    levels = [np.interp(grid, part["radius"], part["value"], right=0.0) for _, part in curves.groupby("sigma")]
    first = curves.iloc[0]
    import pandas as pd

    about = {"network": f"{first['network']}, envelope over σ", "protocol": first["protocol"]}
    return pd.DataFrame({"radius": grid, "value": np.max(levels, axis=0)}).assign(**about)


def _radii(board: Leaderboard, _material: Material) -> Figure | None:
    import pandas as pd

    parts = []
    for row, column in _cells(board, lambda column: column.metric == "average_verified_radius"):
        cell = board.cells[row.checkpoint.sha256, column]
        assert column.threat is not None, "its metrics are about a ball"
        about = {"network": row.label, "norm": NORM_TEXTS[column.threat.norm], "protocol": column.protocol}
        parts.append(_radius_curves(cell, float(column.threat.epsilon)).assign(**about))
    if not parts:
        return None
    text = (
        "Left: fraction of images that are right and verified at each radius, and not known to be broken there (thin); "
        "the true curve lies between the two. Right: the fraction of images whose robust radius lies in each of "
        f"{RADIUS_BINS} intervals, by the largest verified radius; misclassified images and those that are verified at "
        "the largest radius are left out."
    )
    return Figure("radii", "Robust radii", text, pd.concat(parts, ignore_index=True), drawing.radii)


def _radius_curves(cell: Cell, largest: float) -> pd.DataFrame:
    """Return at radii up to the largest of a search the fractions of images verified, with bands, and not broken.

    `density` is the fraction whose largest verified radius lies in the interval that begins there, NaN elsewhere.
    """
    import pandas as pd

    count = len(cell.values)
    fields = cell.evaluation.fields
    right, verified = cell.evaluation.right[:count], fields["verified_radius"][:count].astype(float)
    broken = np.array([math.inf if one is None else one for one in fields["broken_radius"][:count]], dtype=float)
    whole = fields["verified"][:count].astype(bool)
    verified = np.where(whole, largest, verified)  # a ledger has radii rounded down
    edges = np.linspace(0, largest, RADIUS_BINS + 1)
    shares = np.histogram(verified[right & ~whole], edges)[0] / count
    rows = []
    for radius in np.linspace(0, largest, GRID * RADIUS_BINS // 10 + 1):
        proved = clopper_pearson(int((right & (verified >= radius)).sum()), count)
        place = np.flatnonzero(np.isclose(edges[:-1], radius))
        share = shares[place[0]] if len(place) else math.nan
        unbroken = float((right & (broken > radius)).mean())
        rows.append((radius, proved.value, proved.low, proved.high, unbroken, share))
    return pd.DataFrame(rows, columns=["radius", "value", "low", "high", "unbroken", "density"])


def _security(board: Leaderboard, _material: Material) -> Figure | None:
    import pandas as pd

    rows = []
    for row in board.rows:
        for column, cell in row.cells.items():
            if column.group == "attacked" and column.threat is not None and column.kind != PUBLISHED:
                about = {"network": row.label, "protocol": column.protocol, "norm": column.threat.norm}
                clean = [c for c in row.cells if c.group == "clean" and c.images == column.images]
                rows.append({**about, "epsilon": float(column.threat.epsilon), **cell.as_json()})
                rows += [{**about, "epsilon": 0.0, **row.cells[one].as_json()} for one in clean[:1]]
    data = pd.DataFrame(rows).drop_duplicates() if rows else pd.DataFrame()
    if not len(data):
        return None
    radii = data.groupby(["network", "protocol", "norm"])["epsilon"].transform("nunique")
    text = (
        "Robust accuracy under attack against the radius of the ball, with Wilson 95 % intervals; the clean accuracy "
        "is the point at radius 0. Attacks bound the true curve from above."
    )
    data = data[radii > 2].sort_values(["network", "protocol", "epsilon"])
    return Figure("security", "Security curve", text, data, drawing.security)


def _density(board: Leaderboard, _material: Material) -> Figure | None:
    names = titles(board.columns, board.protocols)
    data = numbers(board)
    of_row = {row.label: row.checkpoint for row in board.rows}
    data = data[data["group"].isin(["attacked", "verified"])]
    data = data.assign(
        density=data["network"].map(lambda label: of_row[label].density),
        method=data["network"].map(lambda label: METHODS.get(of_row[label].phase or "")),
        objective=data["network"].map(lambda label: of_row[label].objective),
        heading=data["column"].map({column.key: name for column, name in names.items()}),
    ).dropna(subset=["density", "method"])
    if data["density"].nunique() < 2:
        return None
    kept = ["heading", "objective", "method", "density", "network", "value", "low", "high", "n"]
    text = (
        "Robust and verified accuracy against the fraction of weights kept, for networks pruned by HYDRA (solid) and "
        "by least weight magnitude (dashed), with 95 % intervals over images."
    )
    order = ["heading", "objective", "method", "density"]
    return Figure("density", "Accuracy and density", text, data[kept].sort_values(order), drawing.by_density)


def _sandwich(board: Leaderboard, _material: Material) -> Figure | None:
    import pandas as pd

    labels = {row.checkpoint.sha256: row.label for row in board.rows}
    order = {row.label: place for place, row in enumerate(board.rows)}
    rows = [
        {"network": labels[one.evaluation.checkpoint.sha256], "threat": str(one.threat), "n": one.images.n, **one.parts}
        for one in board.sandwiches
        if one.evaluation.checkpoint.sha256 in labels
    ]
    data = pd.DataFrame(rows)
    if not len(data):
        return None
    text = (
        "Every image is verified, open (neither proved nor broken), broken by an attack, or wrong from the start. "
        "Verified images bound the robust accuracy from below, verified and open ones together from above."
    )
    data = data.sort_values("network", key=lambda labels: labels.map(order), kind="stable")
    return Figure("sandwich", "Verified, open, broken, wrong", text, data, drawing.sandwich)


def _margins(board: Leaderboard, _material: Material) -> Figure | None:
    import pandas as pd

    parts = []
    for column in board.score.values():
        for row in board.rows:
            cell = board.cells.get((row.checkpoint.sha256, column))
            field = next((name for name in ("margin", "lower") if cell and name in cell.evaluation.fields), None)
            if cell is None or field is None:
                continue
            values = np.array(cell.evaluation.fields[field][: len(cell.values)], dtype=float)
            values = np.sort(values[np.isfinite(values) & (np.abs(values) < 1e6)])
            if len(values):
                at = np.linspace(0, 1, min(len(values), 101))
                about = {"network": row.label, "what": field}
                parts.append(pd.DataFrame({"margin": np.quantile(values, at), "fraction": at}).assign(**about))
    if not parts:
        return None
    text = (
        "Distribution of margins (logit of the true class minus the largest other): the smallest that the attack "
        "found, or the lower bound that was proved. The fraction of images left of 0 is broken or not verified."
    )
    return Figure("margins", "Margins", text, pd.concat(parts, ignore_index=True), drawing.margins)


def _kept(board: Leaderboard, material: Material) -> Figure | None:
    text = (
        "Weights of the dense network by magnitude, and those of them that HYDRA and least-weight-magnitude pruning "
        "keep at the same density. Pruning by magnitude keeps the largest; HYDRA keeps small weights, too, as the "
        "histograms of the original paper show."
    )
    data = kept_weights(board, material)
    return Figure("kept-weights", "Which weights are kept", text, data, drawing.kept_weights)


def _layers(board: Leaderboard, material: Material) -> Figure | None:
    text = "Fraction of weights that is not zero in each layer of the pruned networks."
    return Figure("layers", "Density of each layer", text, layer_densities(board, material), drawing.layers)


def _training(_board: Leaderboard, material: Material) -> Figure | None:
    text = "The metric that chooses the epoch, on held-out images, over the epochs of each training run."
    return Figure("training", "Training", text, training_curves(material), drawing.training)


def _examples(_board: Leaderboard, material: Material) -> Figure | None:
    text = (
        "Images that an attack broke, with the class that is right and the one that the network gives the adversarial "
        "image below. The perturbation is scaled so that its largest pixel spans the range; grey is no change."
    )
    draw = partial(drawing.examples, examples=material.examples)
    return Figure("adversarial", "Adversarial images", text, example_lengths(material), draw)


def _cells(board: Leaderboard, wanted: Callable[[Column], bool]) -> Iterator[tuple[Row, Column]]:
    for row in board.rows:
        for column in row.cells:
            if wanted(column) and (row.checkpoint.sha256, column) in board.cells:
                yield row, column


FIGURES: dict[str, Callable[[Leaderboard, Material], Figure | None]] = {
    "density": _density,
    "sandwich": _sandwich,
    "certified": _certified,
    "radii": _radii,
    "security": _security,
    "margins": _margins,
    "kept-weights": _kept,
    "layers": _layers,
    "training": _training,
    "adversarial": _examples,
}
