"""Columns of a leaderboard: what must be equal of two numbers that stand in one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydrabench.evaluators import EVALUATORS, said
from hydrabench.reporting.evaluations import ImageSelection
from hydrabench.threat import Threat, radius_text

PUBLISHED = "published"  # kind of the columns of numbers that others printed, see `external`
_CLAIMS = {"clean_accuracy": "clean", "robust_accuracy": "upper", "verified_accuracy": "lower"}  # of PUBLISHED
OPEN = "sandwich"  # kind of the column of images that are neither proved nor broken, see `sandwich`
GROUPS = {
    "clean": "clean",
    "upper": "attacked",
    "lower": "verified",
    "gap": "open",
    "smoothed": "certified",
    "smoothed-upper": "smoothed, attacked",
}


@dataclass(frozen=True)
class Column:
    """One way of making a number; numbers share a column only if all of this is equal.

    threat: of an attack or a bound. sigma: of smoothing; radius: certified radius, both in pixel
    units. metric: as in `summary.json`, "certified_accuracy@0.5" for instance. label: what its heading says of it.
    interval: key of `INTERVALS`.
    """

    images: ImageSelection
    precision: str
    kind: str
    protocol: str
    metric: str
    threat: Threat | None = None
    sigma: float | None = None
    radius: float | None = None
    label: str = ""
    interval: str = "wilson"

    @property
    def key(self) -> str:
        """Seven fields with colons between: data set, split, n, precision, protocol, condition, metric."""
        threat = f"{self.threat.norm}={radius_text(self.threat.epsilon)}" if self.threat is not None else ""
        condition = ",".join(filter(None, (threat, f"sigma={self.sigma:g}" if self.sigma is not None else "")))
        images = self.images
        return f"{images.name}:{images.split}:{images.size}:{self.precision}:{self.protocol}:{condition}:{self.metric}"

    @property
    def claims(self) -> str:
        """The claim of its numbers about the truth: a key of `GROUPS`."""
        if self.kind == PUBLISHED:
            return _CLAIMS.get(self.metric, "smoothed")
        return "gap" if self.kind == OPEN else EVALUATORS[self.kind].claims

    @property
    def group(self) -> str:
        """The heading above its heading: clean, attacked, verified, open or certified."""
        return GROUPS[self.claims]

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: columns of the same images together, larger selections first, float32 first; then by group; then
        norm (L∞ first), radius or sigma, method, protocol (ids spell out what differs from the default, so the
        shortest comes first)."""
        return (
            (self.images.name, self.images.split, -self.images.n, self.images.chosen),
            (self.precision != "float32", self.precision),
            list(GROUPS).index(self.claims),
            (self.threat is not None and self.threat.norm != "linf", self.threat.epsilon if self.threat else 0),
            (self.sigma or 0.0, [*EVALUATORS, OPEN, PUBLISHED].index(self.kind), len(self.protocol), self.protocol),
            (math.inf if self.radius is None else self.radius, self.metric),
        )


@dataclass(frozen=True)
class Protocol:
    """The kind of evaluation that a protocol id stands for, and every setting that the id fixes."""

    id: str
    kind: str
    settings: Mapping[str, Any]

    @property
    def heading(self) -> str:
        """The heading of its columns, without their threat."""
        if self.kind == PUBLISHED:
            return self.id
        return "open" if self.kind == OPEN else said(EVALUATORS[self.kind].heading, self.read())

    @property
    def meaning(self) -> str:
        """The meaning of a number under this protocol."""
        if self.kind == OPEN:
            return "neither verified by any bound nor broken by any attack of the table at this radius"
        if self.kind == PUBLISHED:
            return "as its source prints it; no records, so that no test and no ranking uses it"
        return said(EVALUATORS[self.kind].meaning, self.read())

    def read(self) -> Any:
        """The settings, with their defaults."""
        return EVALUATORS[self.kind].read({"kind": self.kind, **self.settings})


def titles(columns: Sequence[Column], protocols: Sequence[Protocol]) -> dict[Column, str]:
    """A short, unique heading per column, such as "PGD-50 L∞ 8/255" or "smoothing σ=0.25 r=0.5".

    What all columns share stays out of the headings: the images unless there are several selections,
    the precision unless it is not float32, the protocol unless the table has several of one method
    (for smoothing: and one σ), whatever their radii and images.
    """
    said_of = _what_to_say({column.images for column in columns})
    called = {protocol.id: protocol.heading for protocol in protocols}
    methods = {column: called[column.protocol] for column in columns}
    plain = {column: _heading(column, methods[column], said_of[column.images]) for column in columns}
    pairs = {((methods[column], column.sigma), column.protocol) for column in columns}
    uses = Counter(method for method, _ in pairs)
    alone = {column for column in plain if uses[methods[column], column.sigma] == 1}
    return {column: text if column in alone else f"{text} [{column.protocol}]" for column, text in plain.items()}


def _what_to_say(selections: set[ImageSelection]) -> dict[ImageSelection, str]:
    """Return what tells each selection from the others: nothing of the only one, unless it is not the first images."""
    splits = {(images.name, images.split) for images in selections}
    found = {}
    for images in selections:
        size = f"n={images.size}" if len(selections) > 1 or images.chosen else ""
        found[images] = f"{images.name} {images.split} {size}" if len(splits) > 1 else size
    return found


def _heading(column: Column, method: str, images: str) -> str:
    parts = [method]
    if column.threat is not None:
        parts.append(str(column.threat))
    if column.sigma is not None:
        parts.append(f"σ={column.sigma:g}")
    parts += [column.label] if column.label else []
    tail = [images] if images else []
    tail += [column.precision] if column.precision != "float32" else []
    return " ".join(parts) + (f" ({', '.join(tail)})" if tail else "")
