"""The words around a table: headings, what the numbers mean, how they were made, how large a network is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hydrabench.config.verified import CASCADE
from hydrabench.reporting.evaluations import IMPORTED
from hydrabench.reporting.leaderboard import Column, Leaderboard, Protocol

MISSING = "–"
METHODS = {
    "clean": "clean",
    "pgd": "PGD",
    "autoattack": "AutoAttack",
    "ibp": "IBP",
    "symbolic": "symbolic intervals",
    "crown-ibp": "CROWN-IBP",
    "crown": "CROWN",
    "cascade": "cascade",
    "alpha-crown": "α-CROWN",
    "smoothing": "smoothing",
}
MEANINGS = {
    "clean": "accuracy on the unperturbed images",
    "pgd": "right on the clean image and after projected gradient descent from every loss and restart",
    "autoattack": "right on the clean image and under every attack of standard AutoAttack, as its authors ship it",
    "ibp": "every margin provably positive in the whole ball, by interval bound propagation",
    "symbolic": "every margin provably positive in the whole ball, by symbolic intervals (same-slope CROWN)",
    "crown-ibp": "every margin provably positive in the whole ball, by CROWN over interval bounds",
    "crown": "every margin provably positive in the whole ball, by CROWN for every neuron",
    "cascade": "every margin provably positive in the whole ball, by the first of several methods that proves it",
    "alpha-crown": "every margin provably positive in the whole ball, by CROWN with optimised slopes",
    "smoothing": "right and certified at L2 radius r by randomized smoothing (Cohen et al. 2019), without abstaining",
}
_CERTIFIED = "right and certified at L2 radius r by randomized smoothing"
MODES = {
    "curtailed": f"{_CERTIFIED} as smoothing-cohen would be with all draws, which stop once that verdict is settled",
    "adaptive": f"{_CERTIFIED}, by Clopper–Pearson bounds at fixed looks that share α; draws stop once each radius is "
    "certified or given up",
    "betting": f"{_CERTIFIED}, by a betting confidence sequence; draws stop once each radius is certified or given up",
    "reused": f"{_CERTIFIED}, derived from the certificate of a parent network and the votes lost since (incremental "
    "smoothing, arXiv:2305.19521); α covers both",
    IMPORTED: f"{_CERTIFIED}, as read from another tool's table",
    "predict": "right prediction of the smoothed classifier (PREDICT of Cohen et al. 2019), without abstaining",
}
SEQUENTIAL = ("curtailed", "adaptive", "betting", "reused")
_SMOOTHED = {"average_certified_radius": "mean radius", "smoothed_accuracy": "accuracy", "abstained": "abstained"}


def headings(board: Leaderboard) -> dict[Column, str]:
    """A short, unique heading per column, such as "PGD-50 L∞ 8/255" or "smoothing σ=0.25 r=0.5".

    What all columns share stays out of the headings: the images unless there are several selections,
    the precision unless it is not float32, the protocol unless the table has several of one method
    (for smoothing: and one σ), whatever their radii and images.
    """
    several = len({column.images for column in board.columns}) > 1
    plain = {column: _heading(column, with_images=several) for column in board.columns}
    protocols = {((_method(column), column.sigma), column.protocol) for column in board.columns}
    uses = Counter(method for method, _ in protocols)
    alone = {column for column in plain if uses[_method(column), column.sigma] == 1}
    return {column: text if column in alone else f"{text} [{column.protocol}]" for column, text in plain.items()}


def _method(column: Column) -> str:
    method = METHODS[column.kind]
    # The one thing that tells most columns of these kinds apart; Cohen's mode is what "smoothing" means elsewhere.
    variant = re.match(r"pgd(-\d+)|smoothing-((?!cohen|imported)[a-z]+)", column.protocol)
    return f"{method}{variant[1] or f' {variant[2]}'}" if variant else method


def _heading(column: Column, *, with_images: bool) -> str:
    parts = [_method(column)]
    if column.threat is not None:
        parts.append(str(column.threat))
    if column.sigma is not None:
        parts.append(f"σ={column.sigma:g}")
        parts.append(_SMOOTHED.get(column.metric) or f"r={column.radius:g}")
    images = column.images
    tail = [f"{images.name} {images.split} n={images.size}"] if with_images or images.chosen else []
    tail += [column.precision] if column.precision != "float32" else []
    return " ".join(parts) + (f" ({', '.join(tail)})" if tail else "")


def caption(board: Leaderboard) -> str:
    """Which images, and the unit: the one line that everything in the table shares."""
    images = list(dict.fromkeys(str(column.images) for column in board.columns))
    return f"{' · '.join(images)}. Accuracy in percent with 95 % intervals."


def notes(board: Leaderboard) -> list[str]:
    """How to read the table, as far as it concerns columns that are in it."""
    metrics = {column.metric.partition("@")[0] for column in board.columns}
    found = []
    if metrics & {"robust_accuracy", "verified_accuracy"}:
        found.append(
            "At one radius, verified ≤ true ≤ attacked: accuracy under attack is an upper bound on the true robust "
            "accuracy (a stronger attack can only lower it), verified accuracy a lower bound (a tighter bound can only "
            "raise it)."
        )
    found.append(
        "Intervals cover the sampling of images only: Wilson for clean and attacked accuracy, Clopper–Pearson for "
        "verified and certified accuracy, Student's t for mean radii (pixel units, L2; wrong or abstained counts 0)."
    )
    certified = [column for column in board.columns if column.kind == "smoothing"]
    alphas = {column: _settings(board, column).get("alpha") for column in certified}
    for alpha in sorted(alpha for alpha in set(alphas.values()) if alpha is not None):
        n = max(column.images.n for column in certified if alphas[column] == alpha)
        found.append(
            f"Each smoothing certificate fails with probability at most α = {alpha:g}, image by image: among {n:,} "
            f"image{'s' * (n > 1)} at most {alpha * n:g} are expected to be wrong. It speaks about the smoothed "
            "classifier, not about the network that is attacked and verified in the other columns."
        )
    if any(_settings(board, column).get("mode") in SEQUENTIAL for column in certified):
        found.append(
            "Where draws stop early, a mean radius is what had been certified until then: compare it only under one "
            "protocol."
        )
    if any(column.precision == IMPORTED for column in certified):
        names = ", ".join(row.label for row in board.rows if any(c.precision == IMPORTED for c in row.cells))
        found.append(
            f"Imported: {names}. Such tables hold no hashes of the pixels, so only labels were compared with the other "
            "ledgers; data set, σ and all else is what whoever imported them said, and a radius that is printed with "
            "few digits counts as the least that rounds to it."
        )
    found.append("Density is the fraction of weights kept; nonzero counts the weights that are not 0.")
    return found


def protocol_lines(board: Leaderboard) -> list[tuple[str, str]]:
    """The protocol ids in the order of the columns, each with what it means and its settings."""
    return [
        (protocol.id, "; ".join(filter(None, (meaning(protocol), _settings_text(_spelt_out(protocol))))))
        for protocol in board.protocols
    ]


RIGOR = {
    "sound": ", rounded outwards, so that it holds in exact arithmetic",
    "deployed": ", rounded outwards, so that it holds for the network as it is computed, in any order of summation",
}


def meaning(protocol: Protocol) -> str:
    """What a number under this protocol says of an image."""
    if protocol.kind != "smoothing":
        return MEANINGS[protocol.kind] + RIGOR.get(protocol.settings.get("rigor", "standard"), "")
    text = MODES.get(protocol.settings.get("mode", "cohen"), MEANINGS["smoothing"])
    return text + ", under integer noise, which holds in floating point" * (
        protocol.settings.get("rigor") == "discrete"
    )


def _settings(board: Leaderboard, column: Column) -> Mapping[str, Any]:
    return next(protocol.settings for protocol in board.protocols if protocol.id == column.protocol)


def _spelt_out(protocol: Protocol) -> Mapping[str, Any]:
    """The settings, with the methods of a cascade even where they are the default, which ledgers leave out."""
    return {"methods": CASCADE, **protocol.settings} if protocol.kind == "cascade" else protocol.settings


def _settings_text(settings: Mapping[str, Any]) -> str:
    """Write {"steps": 50, "losses": ["ce", "margin"]} as "steps 50, losses ce + margin", without what is None."""
    return ", ".join(
        f"{key} {' + '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for key, value in settings.items()
        if value is not None
    )


def size_text(count: int | None) -> str:
    """Write a number of bytes readably, in powers of 1000: "512 B", "39.1 kB", "14.7 MB"; a dash if not known."""
    if count is None:
        return MISSING
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
