"""The commands `zoo list|show`, which need no torch and so answer at once."""

from __future__ import annotations

from typing import Any

from hydrabench.checkpoints import ZooEntry, find_entry, read_zoo
from hydrabench.checkpoints.cache import cached_files
from hydrabench.errors import ConfigError, lookup


def list_entries(
    *, dataset: str | None = None, arch: str | None = None, objective: str | None = None, density: float | None = None
) -> list[dict[str, Any]]:
    """The entries of the zoo with all of the given properties as plain values, in the order of the manifests.

    Each also says under `where` whether its file is "shipped", "cached", or on the "web".
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
    return [{**entry.model_dump(mode="json"), "where": _where(entry)} for entry in entries]


def _where(entry: ZooEntry) -> str:
    if entry.file is not None:
        return "shipped"
    return "cached" if cached_files(entry, check=False) else "web"


def show_entry(name: str) -> str:
    """Everything the manifest says of one checkpoint, as JSON. Raises: ConfigError if there is none of that name."""
    return find_entry(name).model_dump_json(indent=2)
