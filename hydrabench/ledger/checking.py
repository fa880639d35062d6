"""Check a ledger: every record is valid by itself, every image appears exactly once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hydrabench.documents import read_text
from hydrabench.errors import ConfigError, LedgerError
from hydrabench.ledger.folder import LEDGER_BYTES, RunFolder
from hydrabench.ledger.records import Record

RUN_AGAIN = "run the same command again into a new --out"
MOST_LACKING = 10**6  # images without a record that are still looked up one by one
_READERS: dict[type[Record], TypeAdapter[Record]] = {}


def fingerprint(identities: Iterable[tuple[str, int]]) -> str:
    """Hash which images a run is about.

    Args: identities: `input_sha` and label of each image, in order.
    Returns: SHA-256 of the lines "input_sha label", in hexadecimal.
    """
    digest = hashlib.sha256()
    for sha, label in identities:
        digest.update(f"{sha} {label}\n".encode())
    return digest.hexdigest()


def _reader(kind: type[Record]) -> TypeAdapter[Record]:
    if kind not in _READERS:
        _READERS[kind] = TypeAdapter(kind)
    return _READERS[kind]


def parse_record(values: Mapping[str, Any], kind: type[Record]) -> Record:
    """Turn one line of a ledger into a record of class `kind`, going by its fields and their types alone.

    Raises: ValueError with all that is wrong with it, as a sentence whose subject is the record.
    """
    try:
        return _reader(kind).validate_json(json.dumps(values))
    except ValidationError as error:
        raise ValueError("; ".join(map(_sentence, error.errors()))) from error


def read_record(values: Mapping[str, Any], kind: type[Record], settings: Mapping[str, Any]) -> Record:
    """Turn one line of a ledger into a record that can be, under settings as `run.json` has them.

    Raises: as `parse_record`.
    """
    record = parse_record(values, kind)
    if found := list(record.problems(settings)):
        raise ValueError("; ".join(found))
    return record


def _sentence(problem: Mapping[str, Any]) -> str:
    """One of pydantic's complaints, with the record as its subject."""
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"lacks {place!r}"
    if problem["type"] == "unexpected_keyword_argument":
        return f"has a field {place!r}, which this version does not know"
    return f"has {place} {json.dumps(problem['input'])[:40]}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def check_record(run: RunFolder, values: Mapping[str, Any], kind: type[Record]) -> Record:
    """Read one record of a run. Raises: LedgerError naming the run, the image and all that is wrong."""
    try:
        return read_record(values, kind, run.header["settings"])
    except ValueError as error:
        raise LedgerError(f"{run.path}: the record of image {values['index']} {error}; {RUN_AGAIN}") from error


def whole_ledger(run: RunFolder, chosen: Sequence[int], kind: type[Record]) -> tuple[dict[str, Any], ...]:
    """Read the records of a run, of class `kind` and one for each image of `chosen`, sorted by index.

    Raises: LedgerError naming the images that are missing or occur twice, or a record with what is wrong with it.
    """
    if not run.records_path.is_file():
        raise LedgerError(f"{run.path} holds no records.jsonl; {RUN_AGAIN}")
    checked = _all_checked(run, kind)
    records = sorted(run.records() if checked is None else checked, key=lambda record: record["index"])
    indices = [record["index"] for record in records]
    if len(chosen) > MOST_LACKING + len(records):  # too many to name those that are missing
        raise LedgerError(f"{run.path} holds {len(records)} records but selects {len(chosen)} images; {RUN_AGAIN}")
    twice = sorted({a for a, b in pairwise(indices) if a == b})
    missing = sorted(set(chosen) - set(indices))
    for problem, images in (("holds more than one record of", twice), ("has no record of", missing)):
        if images:
            raise LedgerError(f"{run.path} {problem} {name_images(images)}, of {len(chosen)} images; {RUN_AGAIN}")
    if len(records) != len(chosen):
        raise LedgerError(f"{run.path} holds {len(records)} records but selects {len(chosen)} images; {RUN_AGAIN}")
    for record in records if checked is None else ():
        check_record(run, record, kind)
    known = run.header.get("dataset", {}).get("fingerprint")
    if known is not None and known != fingerprint((record["input_sha"], record["label"]) for record in records):
        raise LedgerError(f"{run.path}: its records are about other images than its run.json says; {RUN_AGAIN}")
    return tuple(records)


def _all_checked(run: RunFolder, kind: type[Record]) -> list[dict[str, Any]] | None:
    """Read a ledger of which every line has every field once, and nothing is wrong with any record; else None.

    It says the same as reading and checking line by line, in a third of the time, but not what is wrong.
    """
    count = len(fields(kind))
    optional = [f'"{one.name}": ' for one in fields(kind) if (one.default, one.default_factory) != (MISSING, MISSING)]
    reader, settings = _reader(kind), run.header["settings"]
    found = []
    try:
        for line in read_text(run.records_path, LEDGER_BYTES).splitlines():
            if line.count('": ') != count or not all(map(line.__contains__, optional)):
                return None
            record = reader.validate_json(line)
            if next(record.problems(settings), None) is not None:
                return None
            found.append(vars(record))
    except (OSError, ConfigError, ValidationError):
        return None
    return found


def name_images(indices: Sequence[int], limit: int = 10) -> str:
    """Write "image 3", "images 3, 5" or "images 3, 5, … and 7 more", in the order given."""
    shown = ", ".join(map(str, indices[:limit]))
    more = f" and {len(indices) - limit} more" if len(indices) > limit else ""
    return f"image{'s' * (len(indices) != 1)} {shown}{more}"
