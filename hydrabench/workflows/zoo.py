"""The commands `zoo fetch|verify|export`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from hydrabench.bounds.program.dead_channels import NarrowNetwork
from hydrabench.checkpoints import (
    EXPORTS,
    Checkpoint,
    Layout,
    ProtocolResult,
    ZooEntry,
    export_onnx,
    fetch,
    find_entry,
    load_checkpoint,
    read_zoo,
    state_of,
)
from hydrabench.checkpoints.cache import fetch_remote
from hydrabench.checkpoints.own_code import require_recordable
from hydrabench.data import load_images
from hydrabench.errors import CheckpointError, GateError, LedgerError, lookup
from hydrabench.evaluators import EVALUATORS, parse_settings, record_of
from hydrabench.files import shipped
from hydrabench.ledger import parse_record, writing_file
from hydrabench.workflows.evaluation.opening import own_checkpoint
from hydrabench.workflows.evaluation.request import ModelRequest
from hydrabench.workflows.hub import write_repository
from hydrabench.workflows.opening import NOTHING, megabytes, open_checkpoint
from hydrabench.workflows.progress import say
from hydrabench.workflows.refusals import require_free
from hydrabench.workflows.run_options import RunOptions
from hydrabench.workflows.verifying import Finding, open_judge, recompute

REPOSITORY, NARROW = "hf", "onnx-narrow"
DRAWN = 20  # records made again of an evaluator that draws thousands of noisy copies of each image


def fetch_entry(name: str, *, offline: bool = False) -> Path:
    """Return the path of an entry's file after checking its hash; download it first if it is not in the cache.

    The other file of an archive that holds two is named on stderr.
    """
    entry = find_entry(name)
    if entry.file is not None:
        return fetch(entry)
    with megabytes(name) as progress:
        path, *others = fetch_remote(entry, offline=offline, progress=progress)
    for other in others:
        say(f"with its scores: {other}")
    return path


def export_entry(ref: str | ModelRequest, out: Path, layout: str, *, described: Mapping[str, Any] = NOTHING) -> str:
    """Write a checkpoint, or a network of the user's own, to `out` in a format; return the SHA-256 of the file.

    The file of code that a checkpoint needs is written beside `out`, which then opens by itself.
    Args:
        layout: a key of `EXPORTS`, `NARROW` for ONNX without dead channels, or `REPOSITORY` for a folder with a card.
        described: what a file of others does not say of itself, see `open_checkpoint`.
    Raises: LedgerError if `out` exists; ConfigError or CheckpointError if `ref` cannot be read or written so.
    """
    exports = {**EXPORTS, NARROW: _export_narrow}
    export = None if layout == REPOSITORY else lookup("format", exports, layout)
    require_free(out)
    checkpoint = own_checkpoint(ref) if isinstance(ref, ModelRequest) else open_checkpoint(ref, **described)
    if layout in get_args(Layout):
        require_recordable(checkpoint.header.arch, checkpoint.header.code, str(ref))
        if checkpoint.code is not None:
            checkpoint.code.keep_in(out.parent)
    if export is None:
        require_recordable(checkpoint.header.arch, checkpoint.header.code, str(ref))
        return write_repository(checkpoint, out, read_zoo().get(str(ref)))
    with writing_file(out):
        require_free(out)  # again: now no other process writes it
        return export(checkpoint, out)


def _export_narrow(checkpoint: Checkpoint, path: Path) -> str:
    return export_onnx(checkpoint, path, network=NarrowNetwork(checkpoint.baked().eval()))


def dense_bytes(path: Path) -> int:
    """Bytes that the tensors of a checkpoint take when every weight is stored."""
    return sum(tensor.nbytes for tensor in state_of(load_checkpoint(path).network).values())


def verify_shipped(names: Sequence[str], *, options: RunOptions) -> list[str]:
    """Evaluate shipped checkpoints again and compare every image with the shipped ledgers.

    Args:
        names: zoo ids; empty for all that have shipped ledgers.
        options: say where the images lie; without a folder, those of CIFAR-10 are the 200 that come with hydrabench.
    Returns: one line per protocol that agrees; of smoothing, the first `DRAWN` records are computed again.
    Raises: GateError listing the images whose record is not what computing it again gives, beyond the tolerances of
        `ledger.records`. CheckpointError for a name without a shipped ledger.
    """
    entries = _with_ledgers(names)
    agreed, changed = [], []
    for entry in entries:
        fetch(entry)
        for result in entry.results:
            found = _compare(entry, result, options)
            differing = [one.index for one in found if one.differences]
            label = f"{entry.id} {parse_settings(result.settings, entry.id).protocol}"
            agreed.append(
                f"{label}: {len(found) - len(differing)}/{len(found)} records as shipped{_rest(found, result)}"
            )
            say(agreed[-1])
            changed += [f"{label} image {index}" for index in differing]
    if changed:
        more = f" and {len(changed) - 10} more" if len(changed) > 10 else ""
        raise GateError(f"{len(changed)} records differ from the shipped ledgers: {'; '.join(changed[:10])}{more}")
    return agreed


def _rest(found: Sequence[Finding], result: ProtocolResult) -> str:
    """Why some records were not computed again."""
    left = result.n - len(found)
    if not left:
        return ""
    return (
        f"; {left} take long and were left out"
        if len(found) == _most(result)
        else f"; {left} are of images that are not here"
    )


def _most(result: ProtocolResult) -> int:
    return DRAWN if EVALUATORS[result.settings["kind"]].sampled else result.n


def _with_ledgers(names: Sequence[str]) -> list[ZooEntry]:
    """The entries to verify: the named ones, or all that can be, with a note on the others."""
    entries = [find_entry(name) for name in names]
    for entry in entries:
        if not entry.results:
            raise CheckpointError(
                f"no ledger of {entry.id} is shipped, so there is nothing to compare with; leave it out"
            )
    if not names:
        everything = list(read_zoo().values())
        entries = [entry for entry in everything if entry.results]
        if len(entries) < len(everything):
            say(f"skipped: {len(everything) - len(entries)} checkpoints of which no ledger is shipped")
    return entries


def _compare(entry: ZooEntry, result: ProtocolResult, options: RunOptions) -> list[Finding]:
    """Compute the shipped records again, of as many of the first images as are at hand, and compare them."""
    lines = _shipped_records(shipped("zoo") / result.ledger, result.n)
    settings = parse_settings(result.settings, entry.id)
    try:
        records = [parse_record({"seconds": 0.0, **line}, record_of(settings)) for line in lines]
    except ValueError as error:
        raise LedgerError(f"a record of the shipped ledger {result.ledger} {error}; install again") from error
    images = load_images(entry.dataset, "test", options.data_dir, download=options.download)
    here = records[: min(_most(result), len(images))]
    return recompute(open_judge(entry.id, settings, images, options), here, range(len(here)))


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
