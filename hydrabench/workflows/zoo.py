"""The commands `zoo list|show|fetch|verify|export`."""

from __future__ import annotations

import gzip
import json
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydrabench.checkpoints import Layout, ProtocolResult, ZooEntry, export_checkpoint, fetch, open_ref, read_manifest
from hydrabench.errors import GateError, LedgerError, lookup
from hydrabench.files import shipped
from hydrabench.ledger import read_run
from hydrabench.workflows.evaluation import evaluate, open_subject
from hydrabench.workflows.machine import Machine
from hydrabench.workflows.progress import say

# Float kernels of other machines and versions may move a margin by this much, and a verdict with it.
MARGIN_TOLERANCE = 1e-5


def list_entries() -> list[dict[str, Any]]:
    """All entries of the zoo as plain values, in the order of the manifest."""
    return [entry.model_dump(mode="json") for entry in read_manifest().values()]


def find_entry(name: str) -> ZooEntry:
    """Return one entry. Raises: ConfigError naming the known ids."""
    return lookup("checkpoint", read_manifest(), name)


def fetch_entry(name: str) -> Path:
    """Check the hash of an entry's file and return its path."""
    return fetch(find_entry(name))


def export_entry(ref: str, out: Path, layout: Layout) -> str:
    """Write the checkpoint `ref` to `out` in a layout and return the SHA-256 of the file.

    Raises: LedgerError if `out` exists.
    """
    if out.exists():
        raise LedgerError(f"{out} exists already; choose another --out")
    return export_checkpoint(open_ref(ref), out, layout)


def verify(names: Sequence[str], *, machine: Machine) -> list[str]:
    """Evaluate shipped checkpoints again and compare every image with the shipped ledgers.

    Args:
        names: zoo ids; empty for all.
    Returns: one line per protocol that agrees.
    Raises: GateError listing the images whose verdict changed although their margin is not within
        `MARGIN_TOLERANCE` of 0.
    """
    entries = [find_entry(name) for name in names] or list(read_manifest().values())
    agreed, changed = [], []
    for entry in entries:
        fetch(entry)
        for result in entry.results:
            differing = _compare(entry, result, machine)
            label = f"{entry.id} {result.settings.protocol}"
            agreed.append(f"{label}: {result.n - len(differing)}/{result.n} verdicts as shipped")
            say(agreed[-1])
            changed += [f"{label} image {index}" for index in differing]
    if changed:
        more = f" and {len(changed) - 10} more" if len(changed) > 10 else ""
        raise GateError(f"{len(changed)} verdicts differ from the shipped ledgers: {'; '.join(changed[:10])}{more}")
    return agreed


def _compare(entry: ZooEntry, result: ProtocolResult, machine: Machine) -> list[int]:
    """Evaluate again, in a scratch folder; return the indices of the images whose verdict is not the shipped one."""
    before = _shipped_records(shipped("zoo") / result.ledger, result.n)
    with tempfile.TemporaryDirectory() as scratch:
        subject = open_subject(entry.id, machine=machine)
        evaluate(subject, result.settings, Path(scratch) / "run", machine=machine, n=result.n)
        after = list(read_run(Path(scratch) / "run").records())
    return [old["index"] for old, new in zip(before, after, strict=True) if _differs(old, new)]


def _shipped_records(path: Path, n: int) -> list[dict[str, Any]]:
    """Read a shipped ledger. Raises: LedgerError if it is missing, damaged, or not of `n` images."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise LedgerError(
            f"the shipped ledger {path} is missing or damaged ({error}); install hydrabench again"
        ) from error
    if len(records) != n:
        raise LedgerError(f"the shipped ledger {path} has {len(records)} records, the manifest says {n}; install again")
    return records


def _differs(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the image or its verdict changed, leaving out verdicts that rest on a margin next to 0."""
    if (old["index"], old["input_sha"], old["label"]) != (new["index"], new["input_sha"], new["label"]):
        return True
    verdict, margin = ("verified", "lower") if "verified" in old else ("robust", "margin")
    if old[verdict] == new[verdict]:
        return False
    margins = [record[margin] for record in (old, new) if record[margin] is not None]
    return not any(abs(value) < MARGIN_TOLERANCE for value in margins)
