"""Figures by matplotlib, in colours that colour-blind readers tell apart, and dashes that do so in grey."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from hydrabench.reporting.weights import ShownExample

# Okabe and Ito (2008), "Color Universal Design": told apart in every common kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_LINES = 14
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "hydrabench",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}
# Light to dark and hatched, so that parts are told apart in print without colours.
LAYERS_OF_SANDWICH = {
    "verified": ("#0072B2", ""),
    "open": ("#BBBBBB", "//"),
    "broken": ("#E69F00", "\\\\"),
    "wrong": ("#7A3B00", ""),
}
NOTHING_BUT_PIXELS = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def rendered(draw: Callable[[Any, pd.DataFrame], None], data: pd.DataFrame, formats: Iterable[str]) -> dict[str, bytes]:
    """Return a figure in each format; the same data give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 4.0))
        draw(canvas, data)
        found = {}
        for name in formats:
            buffer = BytesIO()
            canvas.savefig(buffer, format=name, dpi=150, metadata=NOTHING_BUT_PIXELS[name])
            found[name] = buffer.getvalue()
    return found


def styles(count: int) -> list[dict[str, Any]]:
    """Return how each of several lines looks: colours first, then dashes."""
    every = [{"color": colour, "linestyle": dash} for dash in DASHES for colour in COLOURS]
    return list(islice(cycle(every), count))


def _lines(axes: Any, data: pd.DataFrame, key: list[str], x: str, y: str, *, band: bool = True) -> None:
    """Draw one line for each value of `key`, with a band where there are intervals."""
    groups = list(data.groupby(key, sort=False))
    for (name, part), style in zip(groups[:MOST_LINES], styles(len(groups)), strict=False):
        label = " ".join(str(one) for one in (name if isinstance(name, tuple) else (name,)))
        axes.plot(part[x], part[y], label=label, linewidth=1.6, marker="o" if len(part) == 1 else None, **style)
        if band and "low" in part and part["low"].notna().all():
            axes.fill_between(part[x], part["low"], part["high"], color=style["color"], alpha=0.12, linewidth=0)
    if len(groups) > MOST_LINES:
        axes.plot([], [], " ", label=f"and {len(groups) - MOST_LINES} more, in the data")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def certified(canvas: Any, data: pd.DataFrame) -> None:
    """Draw certified accuracy against radius."""
    axes = canvas.subplots()
    sigma = data["sigma"].map(lambda value: f"σ={value:g}" if value == value else "")  # noqa: PLR0124  (NaN)
    _lines(axes, data.assign(noise=sigma), ["network", "noise"], "radius", "value")
    axes.set(xlabel="L2 radius (pixel units)", ylabel="certified accuracy", ylim=(0, 1), xlim=(0, None))


def radii(canvas: Any, data: pd.DataFrame) -> None:
    """Draw accuracy against the radius that is proved, and the distribution of these radii."""
    left, right = canvas.subplots(1, 2)
    several = data["protocol"].nunique() > 1
    groups = list(data.groupby(["network", "protocol"], sort=False))[:MOST_LINES]
    for ((network, protocol), part), style in zip(groups, styles(len(groups)), strict=True):
        label = f"{network} {protocol}" if several else network
        left.plot(part["radius"], part["value"], linewidth=1.6, label=label, **style)
        left.fill_between(part["radius"], part["low"], part["high"], color=style["color"], alpha=0.12, linewidth=0)
        left.plot(part["radius"], part["unbroken"], linewidth=0.7, **style)
        bins = part.dropna(subset=["density"])
        edges = [*bins["radius"], part["radius"].max()]
        right.stairs(bins["density"], edges, linewidth=1.4, **style)
    norm = ", ".join(data["norm"].unique())
    left.set(xlabel=f"radius ({norm}, pixel units)", ylabel="verified accuracy", ylim=(0, 1), xlim=(0, None))
    right.set(xlabel=f"largest verified radius ({norm})", ylabel="fraction of images", xlim=(0, None), ylim=(0, None))
    canvas.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def security(canvas: Any, data: pd.DataFrame) -> None:
    """Draw robust accuracy against the radius of the ball, one panel a norm."""
    norms = data["norm"].unique()
    for axes, norm in zip(canvas.subplots(1, len(norms), squeeze=False, sharey=True)[0], norms, strict=True):
        _lines(axes, data[data["norm"] == norm], ["network", "protocol"], "epsilon", "value")
        axes.set(xlabel=f"radius ({norm}, pixel units)", ylabel="robust accuracy", ylim=(0, 1), xlim=(0, None))


def by_density(canvas: Any, data: pd.DataFrame) -> None:
    """Draw accuracy against density, one panel a column of the leaderboard."""
    headings = list(data["heading"].unique())[:4]
    rows = (len(headings) + 1) // 2 if len(headings) > 1 else 1
    canvas.set_size_inches(7.2, 3.0 * rows)
    panels = canvas.subplots(rows, min(2, len(headings)), squeeze=False, sharey=True).ravel()
    objectives = list(data["objective"].unique())
    for axes, heading in zip(panels, headings, strict=False):
        for place, objective in enumerate(objectives):
            for method, dash in (("HYDRA", "-"), ("LWM", "--")):
                part = data[(data["heading"] == heading) & (data["objective"] == objective)]
                part = part[part["method"].isin([method, "dense"])].sort_values("density")
                if not (part["method"] == method).any():
                    continue
                error = [part["value"] - part["low"], part["high"] - part["value"]]
                look = {"color": COLOURS[place % len(COLOURS)], "linestyle": dash, "marker": MARKERS[place % 7]}
                fill = None if method == "HYDRA" else "white"
                axes.errorbar(
                    part["density"], part["value"], error, capsize=2, label=f"{objective}, {method}", mfc=fill, **look
                )
        axes.set_title(heading, fontsize=9)
        axes.set(xscale="log", ylim=(0, 1), xlabel="fraction of weights kept")
        axes.set_xticks(sorted(data["density"].unique()), [f"{one:g}" for one in sorted(data["density"].unique())])
        axes.minorticks_off()
    for axes in panels[len(headings) :]:
        axes.set_axis_off()
    panels[0].set_ylabel("accuracy")
    panels[0].legend()


def sandwich(canvas: Any, data: pd.DataFrame) -> None:
    """Draw what part of the images is verified, open, broken and wrong, one bar a network and threat."""
    shown = data.head(40)
    canvas.set_size_inches(7.2, 1.2 + 0.26 * len(shown))
    axes = canvas.subplots()
    several = shown["threat"].nunique() > 1
    names = [f"{one.network}, {one.threat}" if several else one.network for one in shown.itertuples()]
    left = shown["n"] * 0.0
    for part, (colour, hatch) in LAYERS_OF_SANDWICH.items():
        width = shown[part] / shown["n"]
        axes.barh(
            range(len(shown)), width, left=left, color=colour, hatch=hatch, edgecolor="white", label=part, linewidth=0
        )
        left = left + width
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlim=(0, 1), xlabel="fraction of images" + ("" if several else f", {shown['threat'].iloc[0]}"))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)


def margins(canvas: Any, data: pd.DataFrame) -> None:
    """Draw the distribution of margins."""
    axes = canvas.subplots()
    _lines(axes, data, ["network"], "margin", "fraction")
    axes.axvline(0, color="black", linewidth=0.8)
    low, high = data["margin"].quantile([0.05, 0.99])
    axes.set(xlabel="margin", ylabel="fraction of images below", ylim=(0, 1), xlim=(float(low), float(high)))


def kept_weights(canvas: Any, data: pd.DataFrame) -> None:
    """Draw histograms of the weights that HYDRA and LWM keep, by their magnitude in the dense network."""
    pruned = data[data["method"] != "dense"]
    places = list(pruned[["objective", "density"]].drop_duplicates().itertuples(index=False))[:6]
    rows = (len(places) + 2) // 3
    canvas.set_size_inches(7.2, 2.4 * rows)
    panels = canvas.subplots(rows, min(3, len(places)), squeeze=False).ravel()
    looks = (("HYDRA", COLOURS[0], "-"), ("LWM", COLOURS[1], "--"))
    for axes, (objective, density) in zip(panels, places, strict=False):
        for method, colour, dash in looks:
            part = pruned[(pruned["objective"] == objective) & (pruned["density"] == density)]
            part = part[part["method"] == method]
            if len(part):
                first = part[part["network"] == part["network"].iloc[0]]
                edges = [*first["low"], first["high"].iloc[-1]]
                axes.stairs(first["count"], edges, color=colour, linestyle=dash, linewidth=1.4, label=method)
        axes.set_title(f"{objective}, density {density:g}", fontsize=9)
        axes.set_xlabel("magnitude in the dense network")
    panels[0].set_ylabel("weights kept")
    panels[0].legend()
    for axes in panels[len(places) :]:
        axes.set_axis_off()


def examples(canvas: Any, data: pd.DataFrame, *, examples: Sequence[ShownExample]) -> None:
    """Draw images, their adversarial images and the perturbations below each other, a band a network."""
    bands = [list(part.index) for _, part in data.groupby(["network", "attack"], sort=False)]
    most = max(map(len, bands))
    canvas.set_size_inches(7.2, 0.35 + len(bands) * (0.35 + 2.7 * 6.6 / max(most, 5)))
    for band, places in zip(canvas.subfigures(len(bands), 1, squeeze=False)[:, 0], bands, strict=True):
        first = data.loc[places[0]]
        band.suptitle(f"{first['network']}, {first['attack']}", fontsize=9)
        panels = band.subplots(3, most, squeeze=False)
        for axes in panels.ravel():
            axes.set_axis_off()
        for column, place in zip(panels.T, places, strict=False):
            one, scale = examples[place], data.loc[place, "scale"]
            for axes, pixels in zip(column, (one.image, one.adversarial, 0.5 + scale * one.perturbation), strict=True):
                shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
                axes.imshow(shown.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            column[0].set_title(f"{one.label}", fontsize=8, pad=2)
            column[1].set_title(f"{one.prediction}", fontsize=8, pad=2)
            column[2].set_title(f"× {scale:.3g}", fontsize=7, pad=2)
        for axes, text in zip(panels[:, 0], ("image", "adversarial", "perturbation"), strict=True):
            axes.text(-0.12, 0.5, text, transform=axes.transAxes, rotation=90, ha="right", va="center", fontsize=8)


def layers(canvas: Any, data: pd.DataFrame) -> None:
    """Draw the density of each layer of each pruned network."""
    axes = canvas.subplots()
    _lines(axes, data, ["network"], "place", "density", band=False)
    names = data.drop_duplicates("place").sort_values("place")
    axes.set_xticks(names["place"].tolist(), names["layer"].tolist(), rotation=30, ha="right")
    low, high = data["density"].min(), data["density"].max()
    if 0 < 10 * low < high:
        axes.set_yscale("log")
    else:  # a logarithmic axis of less than a decade has no readable ticks
        axes.set_ylim(0, 1.1 * high)
    axes.set(xlabel="layer", ylabel="fraction of weights kept")


def training(canvas: Any, data: pd.DataFrame) -> None:
    """Draw the metric that chooses the epoch, over epochs."""
    axes = canvas.subplots()
    _lines(axes, data, ["run", "metric"], "epoch", "value", band=False)
    axes.set(xlabel="epoch", ylabel="on held-out images")
    axes.xaxis.get_major_locator().set_params(integer=True)
