"""The commands `zoo list|show`, which need no torch and so answer at once."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

from hydrabench.checkpoints import ProtocolResult, ZooEntry, find_entry, read_zoo
from hydrabench.checkpoints.cache import cached_files
from hydrabench.errors import ConfigError, lookup
from hydrabench.evaluators import EVALUATORS
from hydrabench.files import shipped

CLAIMED = {"upper": "robust", "lower": "verified", "smoothed": "certified"}  # by what an evaluator claims


def list_entries(
    *, dataset: str | None = None, arch: str | None = None, objective: str | None = None, density: float | None = None
) -> list[dict[str, Any]]:
    """The entries of the zoo with all of the given properties as plain values, in the order of the manifests.

    Each also says under `where` whether its file is "shipped", "cached", or on the "web", under `accuracy` what
    `accuracies` finds, and under `radius` of which ball.
    Raises: ConfigError naming the values there are, if no checkpoint at all has a given one.
    """
    entries = everything = list(read_zoo().values())
    for key, wanted in (("dataset", dataset), ("arch", arch), ("objective", objective)):
        if wanted is not None:
            lookup(key, {getattr(entry, key): entry for entry in everything}, wanted)
            entries = [entry for entry in entries if getattr(entry, key) == wanted]
    if density is not None:
        known = sorted({entry.density for entry in everything})
        if density not in known:
            raise ConfigError(
                f"no checkpoint has density {density:g}, the fraction of weights kept; "
                f"choose one of: {', '.join(f'{value:g}' for value in known)}"
            )
        entries = [entry for entry in entries if entry.density == density]
    more = ({"where": _where(entry), "accuracy": accuracies(entry), "radius": radius(entry)} for entry in entries)
    return [{**entry.model_dump(mode="json"), **one} for entry, one in zip(entries, more, strict=True)]


def _where(entry: ZooEntry) -> str:
    if entry.file is not None:
        return "shipped"
    return "cached" if cached_files(entry, check=False) else "web"


def radius(entry: ZooEntry) -> str | None:
    """Return the ball of most of our ledgers, as `ball` writes it; None where the accuracies are published ones."""
    found = [ball(result) for result in entry.results]
    return max(found, key=found.count) if found else None


def ball(result: ProtocolResult) -> str:
    """Return what a result is about: "8/255" of an L∞ ball, "L2 0.25" of an L2 ball or of a smoothed certificate."""
    if result.radius is not None:
        return f"L2 {result.radius:g}"
    text = str(result.settings["epsilon"])
    return text if result.settings["norm"] == "linf" else f"{result.settings['norm'].upper()} {text}"


def accuracies(entry: ZooEntry) -> dict[str, float | None]:
    """Return the clean, the lowest robust and the highest verified and certified accuracy; None where none is known.

    They are fractions of the images: ours where there is a ledger, of one ball, that of most ledgers; published ones
    elsewhere. Certified means by randomized smoothing.
    """
    found: dict[str, list[float]] = {"clean": [], "robust": [], "verified": [], "certified": []}
    for result in entry.results:
        claims = EVALUATORS[str(result.settings["kind"])].claims
        if ball(result) == radius(entry) and claims in CLAIMED:
            found[CLAIMED[claims]].append(result.count / result.n)
    if entry.results:
        found["clean"] += _clean_accuracy(entry)
    for number in entry.published:
        name = number.metric.removesuffix("_accuracy")
        if not found[name]:
            found[name] += [one.value for one in entry.published if one.metric == number.metric]
    best = {"clean": max, "robust": min, "verified": max, "certified": max}
    return {name: best[name](values) if values else None for name, values in found.items()}


def _clean_accuracy(entry: ZooEntry) -> list[float]:
    """Return the fraction of right predictions in a shipped ledger; nothing if it is damaged, which `verify` says.

    A ledger of the smoothed classifier does not know the network's own predictions.
    """
    ledgers = [one.ledger for one in entry.results if one.radius is None]
    if not ledgers:
        return []
    try:
        with gzip.open(shipped("zoo") / ledgers[0], "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        return [sum(bool(record["prediction"] == record["label"]) for record in records) / len(records)]
    except (OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, zlib.error):
        return []


def show_entry(name: str) -> str:
    """Everything the manifest says of one checkpoint, as JSON. Raises: ConfigError if there is none of that name."""
    return find_entry(name).model_dump_json(indent=2)
