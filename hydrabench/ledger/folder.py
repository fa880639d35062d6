"""Run folders: `run.json` holds the settings, `records.jsonl` one record per image, `summary.json` the result.

A ledger grows by whole blocks of images, in the order of the selection, and is flushed to the disk
after each. A run that was killed therefore holds some whole blocks and at most one torn one, which
`RunFolder.keep_whole_blocks` drops. Nothing here knows about tensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydrabench.documents import parse_json, read_json, read_text
from hydrabench.errors import ConfigError, LedgerError, shortened
from hydrabench.files import close_name, now, sha256_of, write_json
from hydrabench.ledger.examples import ADVERSARIAL, LIST, ExampleStore
from hydrabench.ledger.records import Record
from hydrabench.plugins import loaded, require

RUN_SCHEMA = "hydrabench.run/2"
READABLE = ("hydrabench.run/1", RUN_SCHEMA)  # 1 left out settings that have their defaults
LEDGER_BYTES = 1 << 34
SUMMARY_SCHEMA = "hydrabench.summary/1"
# What may differ between the first start of a run and its continuation.
VOLATILE = frozenset(
    {"started", "ended", "status", "environments", "world_size", "micro_batch", "origin", "peak_memory", "adversarial"}
)
RECORDS = "records.jsonl"
# What a finished run holds besides its summary, by the key under which the summary has its SHA-256.
HASHED_FILES = {
    "records_sha256": RECORDS,
    "adversarial_sha256": LIST,
    "checkpoint_sha256": "checkpoint.safetensors",
}


class RunFolder:
    """One folder that one run writes. `open_run` makes or continues it, `read_run` reads it."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header

    @property
    def records_path(self) -> Path:
        """The ledger of this run."""
        return self.path / RECORDS

    @property
    def examples(self) -> ExampleStore:
        """The adversarial examples of this run, if its header says that it keeps them."""
        return ExampleStore(self.path)

    @property
    def keeps_examples(self) -> bool:
        """True for a run that keeps adversarial examples."""
        return self.header.get("keep") == ADVERSARIAL

    @property
    def is_complete(self) -> bool:
        """True if the run ended well, and what it left is still there."""
        return self.header.get("status") == "complete" and not self.lost()

    def lost(self) -> list[str]:
        """The files that a finished run should hold and does not."""
        if not (self.path / "summary.json").is_file():
            return ["summary.json"]
        summary = self.summary()
        return [name for key, name in HASHED_FILES.items() if key in summary and not (self.path / name).is_file()]

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and hardware of what was made last; empty if nothing was."""
        known = self.header.get("environments") or [{}]
        return {key: value for key, value in known[-1].items() if not key.startswith("first_")}

    def require_intact(self) -> None:
        """Compare what a finished run left with the hashes in its summary.

        Raises: LedgerError naming the file that was altered, or that has no hash although its run wrote one.
        """
        summary = self.summary()
        if "fingerprint" in self.header.get("dataset", {}) and not HASHED_FILES.keys() & summary.keys():
            raise LedgerError(f"{self.path / 'summary.json'} was altered: it holds no hash of what the run made")
        for key, name in HASHED_FILES.items():
            if key in summary and (found := sha256_of(self.path / name)) != summary[key]:
                raise LedgerError(
                    f"{self.path / name} has SHA-256 {found[:16]}…, its summary.json says {str(summary[key])[:16]}…; "
                    "one was altered, run the same command again into a new --out"
                )
        if self.keeps_examples != ("adversarial_sha256" in summary):
            raise LedgerError(
                f"{self.path / 'summary.json'} was altered: it does not go with the run's stored examples"
            )
        if self.keeps_examples:
            self.examples.require_intact()

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records in file order. Raises: LedgerError if a line is not a record."""
        try:
            lines = read_text(self.records_path, LEDGER_BYTES).splitlines()
        except (FileNotFoundError, ConfigError) as error:
            raise LedgerError(f"{self.records_path} is missing or damaged: {error}") from error
        for number, line in enumerate(lines, start=1):
            yield _parse(line, self.records_path, number)

    def append(self, block: Sequence[Record]) -> None:
        """Add the records of one block in one write, and wait until they are on the disk."""
        text = "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in block)
        with self.records_path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def keep_whole_blocks(
        self, blocks: Sequence[Sequence[int]], check: Callable[[dict[str, Any]], object] = lambda _: None
    ) -> int:
        """Cut the ledger back to its whole blocks and return how many there are.

        Args:
            blocks: the data-set indices of each block, in the order in which they are written.
            check: called with every record that is kept; raises a LedgerError to refuse it.
        Raises: LedgerError if the ledger holds other images than these, or more.
        """
        if not self.records_path.exists():
            return 0
        raw = self.records_path.read_bytes()
        lines = raw[: raw.rfind(b"\n") + 1].splitlines(keepends=True)
        whole, used = 0, 0
        while whole < len(blocks) and used + len(blocks[whole]) <= len(lines):
            for line, index in zip(lines[used : used + len(blocks[whole])], blocks[whole], strict=True):
                record = _parse(line.decode(), self.records_path, used + 1)
                if record["index"] != index:
                    raise LedgerError(
                        f"{self.records_path} holds other images than this command selects; choose a new --out"
                    )
                check(record)
            used += len(blocks[whole])
            whole += 1
        if whole == len(blocks) and len(lines) > used:
            raise LedgerError(f"{self.records_path} holds more records than this command selects; choose a new --out")
        if (kept := sum(map(len, lines[:used]))) < len(raw):
            with self.records_path.open("r+b") as file:
                file.truncate(kept)
                os.fsync(file.fileno())
        return whole

    def note_environment(self, environment: Mapping[str, Any], **first: int) -> list[str]:
        """Record the environment of what follows, if it differs from that of the run so far.

        Args:
            environment: versions and hardware. first: what it makes first, such as first_record=300.
        Returns: what differs from before, such as "torch 2.8.0 instead of 2.7.1".
        """
        known = self.header.setdefault("environments", [])
        before = {key: value for key, value in known[-1].items() if key not in first} if known else {}
        if before == environment:
            return []
        known.append({**first, **environment})
        write_json(self.path / "run.json", self.header)
        names = sorted(before.keys() | environment.keys()) if before else []
        return [
            f"{name} {environment.get(name)} instead of {before.get(name)}"
            for name in names
            if before.get(name) != environment.get(name)
        ]

    def reopen(self, **changed: Any) -> None:
        """Reopen a run, finished or not, with changed header values; its summary is removed until it ends again."""
        self.header = {key: value for key, value in self.header.items() if key != "ended"} | changed
        self.header["status"] = "running"
        write_json(self.path / "run.json", self.header)
        (self.path / "summary.json").unlink(missing_ok=True)

    def finish(self, summary: Mapping[str, Any], **ended: Any) -> None:
        """Write `summary.json`, with the hashes of what the run wrote line by line, and mark the run complete.

        Args: ended: what else `run.json` says of how it ended.
        """
        for key, name in HASHED_FILES.items():
            if name in (RECORDS, LIST) and (self.path / name).exists():
                summary = {**summary, key: sha256_of(self.path / name)}
        write_json(self.path / "summary.json", {"schema": SUMMARY_SCHEMA, **summary})
        self.header |= {"status": "complete", "ended": now(), **ended}
        write_json(self.path / "run.json", self.header)

    def summary(self) -> dict[str, Any]:
        """Read `summary.json`. Raises: LedgerError if it is not there or not readable."""
        return _read_json(self.path / "summary.json")


def open_run(
    path: Path, header: Mapping[str, Any], *, resume: bool, defaults: Mapping[str, Any] = MappingProxyType({})
) -> RunFolder:
    """Start the run that `header` describes in `path`, or continue it.

    Args:
        path: the run folder; made if it does not exist.
        header: everything that `run.json` says; all but `VOLATILE` must be unchanged on resume.
        resume: continue what `path` holds; a folder that holds nothing yet is simply started.
        defaults: those of the settings in `header` that have the defaults of its protocol. A run.json that lacks one
            is from before it could be set, and counts as if it held that: another protocol, or version of it, differs.
    Raises: LedgerError if `path` holds a run and `resume` is false, or holds a different run.
    """
    header = {"schema": RUN_SCHEMA, **header}
    if used := loaded():
        header["plugins"] = used
    found = find_run(path, resume=resume)
    if found is None:
        run = RunFolder(path, {**header, "started": now(), "status": "running"})
        write_json(path / "run.json", run.header)
        return run
    old = found.header
    if defaults:
        old = {**old, "settings": {**defaults, **old.get("settings", {})}}
    changed = _differences(old, json.loads(json.dumps(header)))
    if changed:
        raise LedgerError(
            f"cannot resume {path}: {'; '.join(changed)}; keep the values it was started with, or choose a new --out"
        )
    return found


def find_run(path: Path, *, resume: bool) -> RunFolder | None:
    """Return the run that `path` holds, to be continued, or None if one can be started there; writes nothing.

    Raises: LedgerError if `path` is in use: holds a run and `resume` is false, holds other files, or is a file.
    """
    if path.exists() and not path.is_dir():
        raise LedgerError(f"{path} is a file; --out names a folder")
    if not (path / "run.json").exists():
        strangers = sorted(path.glob("[!.]*"))
        if strangers:
            raise LedgerError(f"{path} is no run folder but holds {strangers[0].name}; choose a new --out")
        return None
    found = read_run(path)
    if not resume:
        raise LedgerError(f"{path} already holds a run; continue it with --resume or choose a new --out")
    return found


def read_run(path: Path) -> RunFolder:
    """Read the header of a run folder.

    Raises: LedgerError if it is none, or of an unknown schema; ConfigError naming a plugin that it needs.
    """
    if not (path / "run.json").is_file():
        problem = "holds no run.json" if path.exists() else f"does not exist{close_name(path)}"
        raise LedgerError(f"{path} is not a run folder: it {problem}")
    header = _read_json(path / "run.json")
    if header.get("schema") not in READABLE:
        raise LedgerError(
            f"{path / 'run.json'} has schema {shortened(header.get('schema'))}; this version reads "
            f"{' and '.join(READABLE)}"
        )
    require(header.get("plugins", ()), str(path))
    return RunFolder(path, header)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say which values of two headers differ, with their dotted paths."""
    found = []
    for key in sorted(set(old) | set(new)):
        if key == "fingerprint" or (not prefix and key in VOLATILE):
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {_short(before)} and is now {_short(after)}")
    if not found and old.get("fingerprint") != new.get("fingerprint"):
        found.append(f"{prefix}images are not those it was started with")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise LedgerError(f"{path} does not exist; the run has not finished, continue it with --resume") from error
    except ConfigError as error:
        raise LedgerError(str(error)) from error
    if not isinstance(value, dict):
        raise LedgerError(f"{path} does not hold a JSON object")
    return value


def _parse(line: str, path: Path, number: int) -> dict[str, Any]:
    where = f"{path}, line {number},"
    try:
        record = parse_json(line, f"{where} is not a record:")
    except ConfigError as error:
        raise LedgerError(f"{error}; continue the run with --resume") from error
    index = record.get("index") if isinstance(record, dict) else None
    if not isinstance(index, int) or isinstance(index, bool):
        raise LedgerError(f"{where} is not a record of an image")
    return record  # type: ignore[no-any-return]


def finite_or_none(value: float) -> float | None:
    """Return `value`, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None
